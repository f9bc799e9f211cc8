"""Tries pgcoord from real clients of many languages: insert, read back, complete a phase, watch.

`python tests/clients/run.py [NAME…]`. Packages of npm and PyPI, pinned, are installed into
`.clients/` of the project; those of Debian are used where they are installed. What is missing is
skipped, with the reason. Each line that `docs/sql.md` shows for a client has to be in its script.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgcoord.database import schema
from pgcoord.database.embedded import EmbeddedPostgres

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
ROOT = HERE.parents[1]
CACHE = ROOT / ".clients"
PYTHON = CACHE / "python" / "bin" / "python"
SCRIPT_TIMEOUT = 120

_NPM = (
    *("pg@8.23.1", "postgres@3.4.9", "drizzle-orm@0.45.4", "typeorm@0.3.31", "knex@3.3.0"),
    *("reflect-metadata@0.2.2", "sequelize@6.37.8", "pg-hstore@2.3.4"),
)
_PYPI = (
    *("asyncpg==0.32.0", "pg8000==1.31.6", "psycopg2-binary==2.9.13", "psycopg[binary]==3.3.9"),
    *("SQLAlchemy==2.1.9", "Django==5.2.19", "pyodbc==5.5.0"),
)

# What every client has to bring in and to read back: quotes, a tab, letters of several bytes, a
# number beyond 2^53, a nested array and null.
DATA = {
    "title": 'it\'s "quoted" — ü😀',
    "prompt_content": "a\tb\\n\nc",
    "extra": [1, [2.5, None], {"big": 9007199254740993}],
}


@dataclass(frozen=True)
class Client:
    """A client: its script, and the package of Debian with what it needs besides, if any."""

    name: str
    script: str
    probe: tuple[str, ...] = ()
    package: str = ""
    listens: bool = False
    exact: bool = True  # whether it keeps an integer beyond 2^53

    @property
    def command(self) -> list[str]:
        """What runs the script."""
        file = str(SCRIPTS / self.script)
        return {
            ".mjs": ["node", str(CACHE / "node" / self.script)],
            ".py": [str(PYTHON), file],
            ".pl": ["perl", file],
            ".php": ["php", file],
            ".rb": ["ruby", file],
            ".java": ["java", "-cp", "/usr/share/java/postgresql.jar", file],
        }[Path(self.script).suffix]


_JAVA = ("test", "-e", "/usr/share/java/postgresql.jar")
CLIENTS = (
    Client("pg", "pg.mjs", listens=True, exact=False),
    Client("postgres.js", "postgres.mjs", listens=True, exact=False),
    Client("drizzle", "drizzle.mjs", exact=False),
    Client("typeorm", "typeorm.mjs", exact=False),
    Client("sequelize", "sequelize.mjs", exact=False),
    Client("knex", "knex.mjs", exact=False),
    Client("asyncpg", "asyncpg_.py", listens=True),
    Client("pg8000", "pg8000_.py", listens=True),
    Client("psycopg2", "psycopg2_.py", listens=True),
    Client("psycopg", "psycopg_.py", listens=True),
    Client("SQLAlchemy", "sqlalchemy_.py"),
    Client("Django", "django_.py"),
    Client("DBD::Pg", "dbd.pl", ("perl", "-MDBD::Pg", "-e1"), "libdbd-pg-perl", listens=True),
    Client(
        "PDO",
        "pdo.php",
        ("php", "-r", "exit((int)!extension_loaded('pdo_pgsql'));"),
        "php-cli php-pgsql",
        listens=True,
    ),
    Client("ruby-pg", "ruby_pg.rb", ("ruby", "-rpg", "-e0"), "ruby ruby-pg", listens=True),
    Client(
        "ActiveRecord",
        "activerecord.rb",
        ("ruby", "-rlogger", "-ractive_record", "-rpg", "-e0"),
        "ruby-activerecord ruby-pg",
    ),
    Client(
        "JDBC", "Jdbc.java", _JAVA, "libpostgresql-jdbc-java default-jdk-headless", listens=True
    ),
    Client(
        "psqlODBC",
        "odbc_.py",
        ("sh", "-c", "grep -q 'PostgreSQL Unicode' /etc/odbcinst.ini"),
        "odbc-postgresql unixodbc",
    ),
)


def main(names: Sequence[str]) -> int:
    chosen = [each for each in CLIENTS if not names or each.name in names]
    if unknown := set(names) - {each.name for each in CLIENTS}:
        print(f"no such client: {', '.join(sorted(unknown))}")
        return 2
    faults = _faults_of_page()
    missing = _install()
    counts = {"works": 0, "fails": 0, "skipped": 0}
    with tempfile.TemporaryDirectory(prefix="pgcoord-clients-") as folder:
        server = EmbeddedPostgres(Path(folder) / ".pgcoord")
        server.start()
        try:
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                schema.upgrade(conn)
                port = _relay(server.dsn)
                for feature, client in enumerate(chosen, 1):
                    began = time.monotonic()
                    word, told = _try(client, feature, conn, port, missing)
                    counts[word] += 1
                    _clear(conn, feature)
                    print(
                        f"{client.name:<13}{word:<8} {time.monotonic() - began:5.1f} s  {told}",
                        flush=True,
                    )
        finally:
            server.stop()
    for fault in faults:
        print(fault)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return 1 if counts["fails"] or faults else 0


def _faults_of_page() -> list[str]:
    """The lines of docs/sql.md that no script has."""
    page = (ROOT / "docs" / "sql.md").read_text()
    rows = dict(re.findall(r"^\| ([\w.: -]+?) \| [^|]*\| `+ ?(.+?) ?`+ \|", page, re.MULTILINE))
    return [
        f"docs/sql.md has no line for {client.name} that is in {client.script}"
        for client in CLIENTS
        if rows.get(client.name, "?") not in (SCRIPTS / client.script).read_text()
    ]


def _install() -> dict[str, str]:
    """Install what is pinned, once; return what is missing for which ending of scripts."""
    missing = {}
    CACHE.mkdir(exist_ok=True)
    marks = {".mjs": (CACHE / "node.installed", _NPM), ".py": (CACHE / "python.installed", _PYPI)}
    for ending, (mark, packages) in marks.items():
        if mark.exists() and mark.read_text() == "\n".join(packages):
            continue
        try:
            if ending == ".py":
                venv.create(CACHE / "python", with_pip=True)
                _run([str(PYTHON), "-m", "pip", "install", "--quiet", *packages])
            else:
                folder = str(CACHE / "node")
                flags = ["--silent", "--no-save", "--no-package-lock", "--prefix", folder]
                _run(["npm", "install", *flags, *packages])
        except (OSError, subprocess.SubprocessError) as error:
            missing[ending] = f"its packages cannot be installed: {error}"
        else:
            mark.write_text("\n".join(packages))
    if ".mjs" not in missing:  # imports are looked for beside the file
        for script in SCRIPTS.glob("*.mjs"):
            shutil.copy(script, CACHE / "node")
    return missing


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)


def _try(
    client: Client, feature: int, conn: psycopg.Connection, port: int, missing: dict[str, str]
) -> tuple[str, str]:
    """Run a client's script; return what came out, and what about it."""
    if reason := missing.get(Path(client.script).suffix):
        return "skipped", reason
    if client.probe and not _succeeds(client.probe):
        return "skipped", f"apt-get install {client.package}"
    database = conn.info.dbname
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(CACHE),
        "LANG": "C.UTF-8",
        "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{port}/{database}",
        "PGPORT": str(port),
        "PGDATABASE": database,
        "FEATURE": str(feature),
        "DATA": json.dumps(DATA),
    }
    try:
        result = subprocess.run(
            client.command, env=environment, capture_output=True, text=True, timeout=SCRIPT_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "fails", str(error)
    if result.returncode:
        return "fails", f"exit status {result.returncode}\n{result.stdout}{result.stderr}"
    return _judge(client, feature, conn, result.stdout)


def _judge(client: Client, feature: int, conn: psycopg.Connection, said: str) -> tuple[str, str]:
    """Compare the rows, answers and notifications of a client with the expected ones."""
    rows = conn.execute(
        "select status, depends_on_phases, phase_data, unmet from phase_queue"
        " where feature_id = %s order by phase_number",
        [feature],
    ).fetchall()
    expected = json.loads(json.dumps(DATA))
    if not client.exact:  # a number of JavaScript
        expected["extra"][2]["big"] = 9007199254740992
    read = re.search(r"^read (.*)$", said, re.MULTILINE)
    heard = re.search(r"^heard (.*)$", said, re.MULTILINE)
    wrong = [
        words
        for words, holds in {
            f"stored {rows}": [row[0] for row in rows] == ["completed", "queued"]
            and rows[1][1:] == ([1], expected, 0),
            f"read {read and read[1]}": read and json.loads(read[1]) == [[1], expected],
            f"heard {heard and heard[1]}": not client.listens
            or (heard and heard[1] == str(feature)),
        }.items()
        if not holds
    ]
    if wrong:
        return "fails", "; ".join(wrong)
    return "works", "with LISTEN" if client.listens else ""


def _clear(conn: psycopg.Connection, feature: int) -> None:
    """Remove what a client has brought in: all use the same adw_id."""
    with suppress(psycopg.Error):
        conn.execute("select pgcoord.complete_phase(%s, 'by-hand')", [f"queue-{feature}-1"])
    conn.execute("delete from planned_features where id = %s", [feature])


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


def _relay(dsn: str) -> int:
    """Pass TCP on to the socket of the server, for clients that know no other; return the port."""
    values = conninfo_to_dict(dsn)
    target = f"{values['host']}/.s.PGSQL.{values.get('port', 5432)}"
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(target)
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pass_on, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
