#!/usr/bin/env bash
# PGlite-socket 0.2.17 (PGlite 0.5.14) with --max-connections: two clients both get the same advisory lock, see each
# other's settings, and a notification reaches who sent it, not who listens.
#
# All connections are one session of the one process: pg_backend_pid() is the same in each. What relies on sessions
# fails without an error: pg_try_advisory_lock is true for both (a session may lock again what it has locked), SET of
# one holds for the other, NOTIFY is delivered on the connection whose statement made it.
#
# Exit status 0 while it is so, 1 when it is not so any more.
set -euo pipefail

folder=$(mktemp -d)
stop() {
    kill "$server" 2>/dev/null || true
    rm -rf "$folder"
}
server=
trap stop EXIT
npm install --silent --no-save --no-package-lock --prefix "$folder" @electric-sql/pglite-socket@0.2.17 \
    @electric-sql/pglite@0.5.14 pg@8.23.1 >/dev/null
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
node "$folder/node_modules/.bin/pglite-server" --db=memory:// --host=127.0.0.1 --port="$port" \
    --max-connections=5 >"$folder/log" 2>&1 &
server=$!
for _ in $(seq 300); do grep -q listening "$folder/log" && break; sleep 0.1; done

cat >"$folder/try.mjs" <<'NODE'
import pg from 'pg'

const open = async () => {
  const client = new pg.Client({ host: '127.0.0.1', port: Number(process.argv[2]), user: 'postgres', database: 'postgres' })
  await client.connect()
  return client
}
const [one, two] = [await open(), await open()]
const value = async (client, sql) => Object.values((await client.query(sql)).rows[0])[0]
const heard = []
one.on('notification', () => heard.push('the listener'))
two.on('notification', () => heard.push('the sender'))
console.log('same session:', (await value(one, 'select pg_backend_pid()')) === (await value(two, 'select pg_backend_pid()')))
console.log('lock, first client:', await value(one, 'select pg_try_advisory_lock(1)'))
console.log('lock, second client:', await value(two, 'select pg_try_advisory_lock(1)'))
await one.query("set statement_timeout = '7s'")
console.log('statement_timeout of the second client:', await value(two, 'show statement_timeout'))
await one.query('listen news')
await two.query('notify news')
await one.query('select 1')
console.log('heard by:', heard.join(', '))
await one.end()
await two.end()
NODE
node "$folder/try.mjs" "$port" | tee "$folder/said"
diff "$folder/said" - <<'SAID'
same session: true
lock, first client: true
lock, second client: true
statement_timeout of the second client: 7s
heard by: the sender
SAID
