"""The guard over the server of a session of tests."""

import subprocess
import sys
from pathlib import Path

from support import PATIENCE

_SESSION = """
import signal
from pathlib import Path
from support.guard import guarded
with guarded(Path({folder!r})):
    print("guarded", flush=True)
    signal.pause()
"""


def test_the_server_of_a_killed_session_ends_and_its_folder_goes(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    (folder / "postgres" / "data").mkdir(parents=True)
    server = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    (folder / "postgres" / "data" / "postmaster.pid").write_text(f"{server.pid}\n/data\n")
    with subprocess.Popen(
        [sys.executable, "-c", _SESSION.format(folder=str(folder))],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    ) as session:
        assert session.stdout
        assert session.stdout.readline() == b"guarded\n"
        assert server.poll() is None
        session.kill()
    try:
        assert server.wait(PATIENCE) < 0
    finally:
        server.kill()
        server.communicate()
