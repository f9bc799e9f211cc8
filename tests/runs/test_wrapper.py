"""The wrapper of an engine's job, run as an engine runs it, against a served coordinator."""

import ast
import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from support import PATIENCE
from support.coordination import is_alive, until_it_ends
from support.database import Connection, add_feature, add_phase, attempt_of, claim, one, statuses
from support.disk import small_disk
from support.serving import Site

from pgcoord.messages import jobs
from pgcoord.runs import job

SOURCE = Path(job.__file__)

# The oldest Python that it is for, where this machine has it.
PYTHON = next(map(str, Path.home().glob(".pyenv/versions/3.8.*/bin/python3")), sys.executable)


@pytest.fixture
def attempt(conn: Connection, epoch: int) -> dict[str, Any]:
    """An attempt whose job was submitted, with a prompt of 5 MB."""
    data = Jsonb({"prompt_content": "word " * 1_000_000 + "\nend"})
    queue_id = add_phase(conn, add_feature(conn, {}), 1, phase_data=data)
    assert claim(conn, epoch) == [queue_id]
    attempt = attempt_of(conn, queue_id)
    conn.execute("select pgcoord_private.submit_attempt(%s, %s)", [epoch, attempt["id"]])
    return attempt


def order(attempt: dict[str, Any], script: str, **more: Any) -> dict[str, Any]:
    return {
        "attempt": attempt["id"],
        "secret": attempt["secret"],
        "command": ["sh", "-c", script, "sh", job.PROMPT_MARK],
        "directory": "/",
        "environment": {"PATH": os.environ["PATH"], "ODD": 'a, "b"\nc=d'},
        "grace": 0.5,
        **more,
    }


async def start(
    order: dict[str, Any], *, clock: int = 0, output: int = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    """Start the wrapper as on a node whose clock is off by so many seconds."""
    set_clock = f"import time; real = time.time; time.time = lambda: real() + {clock}\n"
    run = f"{set_clock}import runpy; runpy.run_path({str(SOURCE)!r}, None, '__main__')"
    return await asyncio.create_subprocess_exec(
        PYTHON,
        "-c",
        run,
        env={"PGCOORD_ORDER": job.pack(order), "PGCOORD_JOB": "17", "HOME": "/nowhere"},
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
    )


async def until_asked(folder: Path, attempt: dict[str, Any]) -> list[dict[str, Any]]:
    """Wait until a copy of the job asks in its folder whether it may begin."""
    while not (asked := jobs.spooled_begins(folder, attempt["id"], attempt["secret"])):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return asked


async def run(order: dict[str, Any], **how: Any) -> tuple[int | None, str]:
    """Run the wrapper to its end; return its exit status and its output."""
    async with asyncio.timeout(PATIENCE):
        process = await start(order, **how)
        output, _ = await process.communicate()
    return process.returncode, output.decode()


def test_the_wrapper_needs_only_python_3_8_and_its_standard_library() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


async def test_a_job_without_a_shared_folder_reports_its_begin_and_end(
    site: Site, conn: Connection, attempt: dict[str, Any], tmp_path: Path
) -> None:
    script = """
        echo "$ODD"; tail -n1 "$1"; wc -c <"$PGCOORD_PROMPT_FILE"; echo odd >&2
        sed s/1/2/ "$PGCOORD_INPUT_FILE"
        echo '{"summary": "s"}' >"$PGCOORD_RESULT_FILE"; exit 42"""
    scratch = tmp_path / "scratch"
    given = order(attempt, script, url=f"{site.url}/api/v1", scratch=str(scratch))
    status, output = await run(given, clock=-900)
    assert (status, output) == (42, 'a, "b"\nc=d\nend5000004\nodd\n{}')
    assert not scratch.exists()
    status, output = await run(given)  # another copy of the same job
    assert (status, "runs nothing" in output) == (job.REFUSED, True)
    ended = attempt_of(conn, attempt["queue_id"])
    assert (ended["exit_code"], ended["job"], ended["refused_begins"]) == (42, "17", 1)
    assert ended["error"].endswith("5000004\nodd\n{}")
    assert one(conn, "select value from pgcoord.result")["value"] == {"summary": "s"}
    assert statuses(conn) == {1: "failed"}


async def test_a_request_answered_without_http_is_repeated(tmp_path: Path) -> None:
    said: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append((await reader.readuntil(b"\r\n")).split()[1].decode())
        if said.count(said[-1]) == 1:  # as from a coordinator that is killed meanwhile
            writer.write(b"HTT")
        else:
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"attempt": 1}')
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        attempt = {"id": 1, "secret": "whsec_" + "A" * 32}
        status, output = await run(order(attempt, "exit 3", url=url, scratch=str(tmp_path / "s")))
    assert (status, output) == (3, "")
    assert said == ["/attempts/1/begin"] * 2 + ["/attempts/1/exit"] * 2


async def test_a_job_without_a_coordinator_begins_and_ends_by_the_shared_folder(
    attempt: dict[str, Any], tmp_path: Path
) -> None:
    given = order(attempt, "echo out; kill -9 $$", folder=str(tmp_path), log_max=100)
    process = await start(given)
    async with asyncio.timeout(PATIENCE):
        [asked] = await until_asked(tmp_path, attempt)
        assert jobs.spooled_begins(tmp_path, attempt["id"], "whsec_" + "A" * 32) == []
        assert asked["job"] == "17"
        assert not (tmp_path / "log").exists()
        jobs.answer_spooled(tmp_path, asked["copy"], None)
        assert await process.wait() == 128 + signal.SIGKILL
    message = jobs.spooled_exit(tmp_path, attempt["id"], attempt["secret"])
    assert message
    assert (message["copy"], message["exit_code"]) == (asked["copy"], 137)
    assert message["log_tail"] == (tmp_path / "log").read_text().strip() == "out"


async def test_a_job_refused_by_file_or_ended_before_its_begin_runs_nothing(
    attempt: dict[str, Any], tmp_path: Path
) -> None:
    given = order(attempt, "echo ran", folder=str(tmp_path))
    for end in ("refused", "ended"):
        process = await start(given)
        async with asyncio.timeout(PATIENCE):
            [asked] = await until_asked(tmp_path, attempt)
            if end == "refused":
                jobs.answer_spooled(tmp_path, asked["copy"], "another copy began")
            else:
                process.send_signal(signal.SIGTERM)
            output, _ = await process.communicate()
        assert (process.returncode, b"ran\n" in output) == (job.REFUSED, False)
        assert not (tmp_path / "log").exists()


async def test_sigterm_reaches_the_command_and_sigkill_follows_if_ignored(
    site: Site, conn: Connection, attempt: dict[str, Any], tmp_path: Path
) -> None:
    script = "trap 'echo clean' TERM; sleep 1000 & echo $! >pid; while :; do wait; done"
    given = order(
        attempt, script, url=site.url, folder=str(tmp_path), directory=str(tmp_path), log_max=60
    )
    given["command"] = ["sh", "-c", f"seq 100; {script}"]
    process = await start(given)
    async with asyncio.timeout(PATIENCE):
        await until_it_ends(tmp_path / "pid", "\n")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGKILL
    ended = attempt_of(conn, attempt["queue_id"])
    assert ended["exit_code"] == 137
    assert ended["error"].endswith("clean")
    log = (tmp_path / "log").read_text()
    assert log.startswith("1\n2\n3\n")
    assert "bytes were left out here" in log
    assert log.endswith("clean\n")
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_a_full_shared_disk_costs_output_but_not_the_exit_status(
    attempt: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        given = order(attempt, "yes | head -c 1000000; exit 7", folder=str(disk))
        log = os.open(disk / "engine.log", os.O_WRONLY | os.O_CREAT)  # an engine's, there as well
        process = await start(given, output=log)
        os.close(log)
        async with asyncio.timeout(PATIENCE):
            [asked] = await until_asked(disk, attempt)
            jobs.answer_spooled(disk, asked["copy"], None)
            assert await process.wait() == 7
        message = jobs.spooled_exit(disk, attempt["id"], attempt["secret"])
        assert message
        assert (message["exit_code"], message["log_tail"]) == (7, "")


@pytest.mark.scale
async def test_a_job_that_meets_a_full_shared_disk_begins_once_there_is_room(
    attempt: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        filler = disk / "filler"
        with suppress(OSError):
            filler.write_bytes(bytes(1_000_000))
        process = await start(order(attempt, "exit 7", folder=str(disk)))
        assert process.stdout
        async with asyncio.timeout(PATIENCE):
            assert b"is not written: No space left" in await process.stdout.readline()
            filler.unlink()
            [asked] = await until_asked(disk, attempt)
            jobs.answer_spooled(disk, asked["copy"], None)
            assert await process.wait() == 7


async def test_an_order_that_cannot_be_read_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text(json.dumps({"attempt": 1}))
    process = await asyncio.create_subprocess_exec(
        PYTHON, str(SOURCE), str(tmp_path / "order.json"), stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert (process.returncode, b"has no order" in said) == (job.REFUSED, True)
