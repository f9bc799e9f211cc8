"""The launcher with real processes and real signals; what must wait waits for a FIFO or a lock."""

# Nothing else runs in these event loops; and figures are for printing.
# ruff: noqa: ASYNC220, ASYNC222, ASYNC240, T201

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from support import PATIENCE
from support.disk import small_disk

from pgcoord.coordination.launching import JobState
from pgcoord.errors import CannotStart
from pgcoord.runs import linux
from pgcoord.runs import run as launcher
from pgcoord.runs.run import Run

MakeRun = Callable[[str], Run]

PATH = "/usr/local/bin:/usr/bin:/bin"
LONG = timedelta(seconds=60)
NONE = timedelta(0)


@pytest.fixture
async def make_run(tmp_path: Path) -> AsyncIterator[MakeRun]:
    """Make runs, each in a folder of its own; nothing of them is left when the test is over."""
    runs: list[Run] = []

    def make(name: str) -> Run:
        runs.append(Run(tmp_path / name))
        return runs[-1]

    yield make
    for run in runs:
        await run.end(NONE)
        await run.end_left_behind(NONE)


@pytest.fixture
async def run(make_run: MakeRun) -> Run:
    return make_run("run")


class Fifo:
    """A rendezvous: the first, reader or writer, waits for the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    async def read(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await asyncio.to_thread(self.path.read_text)).strip()

    async def write(self, text: str = "go\n") -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.to_thread(self.path.write_text, text)


@pytest.fixture
def ready(tmp_path: Path) -> Fifo:
    """What a command writes to when it has come as far as the test wants it."""
    return Fifo(tmp_path / "ready")


@pytest.fixture
def go(tmp_path: Path) -> Fifo:
    """What a command reads from to be held, for ever if the test never writes to it."""
    return Fifo(tmp_path / "go")


def start(run: Run, script: str, *arguments: str, **environment: str) -> None:
    """Start `script` by sh in the folder above that of the run, where the FIFOs are."""
    run.start(
        ["sh", "-c", script, "script", *arguments],
        directory=run.folder.parent,
        environment={"PATH": PATH, **environment},
    )


class Starter:
    """Another Python process, as a coordinator would be; killed at the end if it has not been."""

    def __init__(self, code: str, *arguments: object) -> None:
        words = [sys.executable, "-c", code, *map(str, arguments)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.stdin = None

    def ended(self) -> int:
        return self._process.wait(PATIENCE)


def wait_until_free(run: Run) -> None:
    """Block until nobody holds the run's lock: the wrapper is gone."""
    with (run.folder / "status").open() as status:
        fcntl.flock(status, fcntl.LOCK_EX)


def pid_of(run: Run) -> int:
    assert run.pid is not None
    return run.pid


def is_living(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# Starting, and the command's surroundings


async def test_a_run_goes_from_never_started_to_alive_to_ended(
    run: Run, ready: Fifo, go: Fifo
) -> None:
    assert (run.state(), run.pid, run.exit_status) == (JobState.NEVER_STARTED, None, None)
    start(run, "echo >ready; read x <go; exit 7")
    await ready.read()
    assert (run.state(), run.exit_status) == (JobState.ALIVE, None)
    [command] = run.left_behind()
    assert command.pid != pid_of(run)
    assert run.process_started is not None
    await go.write()
    assert await run.wait() == 7
    assert (run.state(), run.exit_status) == (JobState.ENDED, 7)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -INT $$", 130),
        ("kill -KILL $$", 137),
        ("kill -HUP 0; exit 3", 129),
        ("trap 'exit 4' TERM; kill -TERM 0", 4),
    ],
)
async def test_the_exit_status_is_written_by_each_shell(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, script: str, status: int
) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    (tmp_path / "sh").symlink_to(program)
    monkeypatch.setattr(launcher, "_SHELL", str(tmp_path / "sh"))
    start(run, script)
    assert run.process_started == Run(run.folder).process_started
    assert await run.wait() == status
    assert Run(run.folder).exit_status == status  # from the file, not from waitpid


async def test_the_recorded_process_is_the_wrapper_with_its_start_time(
    run: Run, ready: Fifo, go: Fifo
) -> None:
    start(run, "echo >ready; read x <go")
    await ready.read()
    adopted = Run(run.folder)
    assert (adopted.pid, adopted.process_started) == (run.pid, run.process_started)
    assert linux.start_time(pid_of(run)) == run.process_started
    assert os.getsid(pid_of(run)) == os.getpgid(pid_of(run)) == run.pid


async def test_arguments_arrive_as_they_are(run: Run, tmp_path: Path) -> None:
    arguments = [
        "",
        " ",
        "'",
        '"',
        "a\nb",
        "$(touch gone)",
        "`x`",
        "{}",
        "*",
        "\\",
        "-e",
        "é€😀",
        ";",
    ]
    code = "import sys; open('arguments', 'w').write(repr(sys.argv[1:]))"
    run.start(
        [sys.executable, "-c", code, *arguments],
        directory=tmp_path,
        environment={"PATH": PATH, "PYTHONUTF8": "1"},
    )
    assert await run.wait() == 0
    assert (tmp_path / "arguments").read_text() == repr(arguments)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", ["exit", "eval", "cd"])
async def test_a_builtin_of_the_shell_is_no_command(run: Run, tmp_path: Path, name: str) -> None:
    environment = {"PATH": str(tmp_path)}
    with pytest.raises(CannotStart, match=f"{name}: not found in"):
        run.start([name, "7"], directory=tmp_path, environment=environment)
    (tmp_path / name).write_text("#!/bin/sh\nexit 42\n")
    (tmp_path / name).chmod(0o755)
    run.start([name, "7"], directory=tmp_path, environment=environment)
    assert await run.wait() == 42


async def test_the_environment_holds_the_given_variables_and_the_prompt_file(
    run: Run, tmp_path: Path
) -> None:
    values = {"PATH": PATH, "EMPTY": "", "ODD": "a'b\"c\n$(d)=é", "pgcoord_": "kept"}
    run.start(["env", "-0"], directory=tmp_path, environment=values)
    assert await run.wait() == 0
    got = dict(entry.split("=", 1) for entry in run.log.path.read_text().split("\0") if entry)
    files = {
        "PGCOORD_PROMPT_FILE": "prompt.md",
        "PGCOORD_INPUT_FILE": "inputs.json",
        "PGCOORD_RESULT_FILE": "result.json",
    }
    assert got == values | {name: str(run.folder / file) for name, file in files.items()}


async def test_the_command_holds_neither_lock_and_reads_nothing(run: Run, tmp_path: Path) -> None:
    run.start(["ls", "-l", "/proc/self/fd"], directory=tmp_path, environment={"PATH": PATH})
    assert await run.wait() == 0
    held = dict(re.findall(r" (\d+) -> (.*)", run.log.path.read_text()))
    assert held.pop("3").startswith("/proc/")
    assert held == {"0": "/dev/null", "1": str(run.log.path), "2": str(run.log.path)}


async def test_a_program_is_found_relative_to_its_working_directory(
    run: Run, make_run: MakeRun, tmp_path: Path
) -> None:
    program = tmp_path / "there" / "bin" / "answer"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nexit 42\n")
    program.chmod(0o755)
    there = tmp_path / "there"
    run.start(["answer"], directory=there, environment={"PATH": f"{PATH}:bin"})
    assert await run.wait() == 42
    other = make_run("other")
    other.start(["bin/answer"], directory=there, environment={})
    assert await other.wait() == 42


async def test_folders_are_made_for_the_owner_only(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a/b/c")
    run.start(["true"], directory=tmp_path, environment={"PATH": PATH})
    await run.wait()
    created = [tmp_path / "a", tmp_path / "a/b", run.folder]
    assert {folder.stat().st_mode & 0o777 for folder in created} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in run.folder.iterdir()} == {0o600}


async def test_the_log_gets_both_outputs_after_its_earlier_content(run: Run) -> None:
    run.folder.mkdir()
    run.log.path.write_text("prepared\n")
    start(run, "echo out; echo err >&2")
    await run.wait()
    assert run.log.path.read_text() == "prepared\nout\nerr\n"


async def test_a_run_is_the_same_by_any_path(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert (
        Run(tmp_path / "link" / run.folder.name).prompt_file == run.prompt_file
    )  # it marks the processes


async def test_ten_megabytes_of_output_block_nothing(run: Run) -> None:
    start(run, "head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2")
    async with asyncio.timeout(PATIENCE):
        assert await run.wait() == 0
    assert run.log.path.stat().st_size == 20_000_000


# What cannot be started has not been


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ([], "an empty command"),
        (["no-such-program"], "no-such-program: not found in"),
        (["./no-such-file"], "no-such-file: not found in"),
        (["./plain"], "plain is not executable"),
        (["./folder"], "folder: not found in"),
        (["true", "x" * 3_000_000], "true in .*: Argument list too long"),
        (["true", *["x" * 100_000] * 100], "true in .*: Argument list too long"),
        (["true", "a\0b"], "true in .*: embedded null byte"),
    ],
)
async def test_a_command_that_cannot_be_started_leaves_the_run_unchanged(
    run: Run, tmp_path: Path, command: list[str], reason: str
) -> None:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CannotStart, match=reason):
        run.start(command, directory=tmp_path, environment={"PATH": PATH})
    assert (run.state(), run.pid, await run.wait()) == (JobState.NEVER_STARTED, None, None)
    start(run, "exit 7")
    assert await run.wait() == 7


async def test_a_directory_has_to_be_there(run: Run, tmp_path: Path) -> None:
    for directory in (tmp_path / "missing", Path("/dev/null")):
        with pytest.raises(CannotStart, match="no such directory"):
            run.start(["true"], directory=directory, environment={"PATH": PATH})
    assert run.state() is JobState.NEVER_STARTED


async def test_a_variable_that_a_shell_would_drop_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"named 'a\.b'"):
        run.start(["true"], directory=tmp_path, environment={"PATH": PATH, "a.b": "1"})


# Once


async def test_a_second_start_is_refused_while_alive_and_after_the_end(
    run: Run, ready: Fifo, go: Fifo
) -> None:
    start(run, "echo >ready; read x <go; exit 7")
    await ready.read()
    with pytest.raises(CannotStart, match="was started before"):
        start(Run(run.folder), "exit 8")
    await go.write()
    assert await run.wait() == 7
    with pytest.raises(CannotStart, match="was started before"):
        start(Run(run.folder), "exit 8")
    assert Run(run.folder).exit_status == 7


RACER = """
import sys
from pathlib import Path
from pgcoord.errors import CannotStart
from pgcoord.runs.run import Run
place, number = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
won = 0
for run in [Run(place / f"run {i}") for i in range(number)]:
    try:
        run.start(["sh", "-c", "echo >>$0.count", run.folder], directory=place, environment={})
        won += 1
    except CannotStart:
        run.state()
print(won)
"""


async def test_of_many_starters_at_once_one_starts(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"run {number}") for number in range(30)]
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(Starter(RACER, tmp_path, len(runs))) for _ in range(6)]
        for racer in racers:
            assert racer.line() == "ready"
        for racer in racers:
            racer.go_on()
        won = [int(racer.line()) for racer in racers]
    assert sum(won) == len(runs)
    for run in runs:
        assert await run.wait() == 0
        assert Path(f"{run.folder}.count").read_text() == "\n"
    print("started by each:", won)


# Whoever is killed


KILLED = """
import os, signal, sys
from pathlib import Path
from pgcoord.runs import run as launcher
def killed(pid):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "before it knows the pid":
    launcher.system.start_time = killed
run = launcher.Run(Path(sys.argv[1]))
run.start(
    ["sh", "-c", "echo >>count; echo >ready; read x <go; exit 7"],
    directory=run.folder.parent,
    environment={"PATH": os.defpath},
)
killed(0)
"""


@pytest.mark.parametrize("moment", ["before it knows the pid", "after start"])
async def test_the_exit_status_survives_the_Starter(
    run: Run, tmp_path: Path, ready: Fifo, go: Fifo, moment: str
) -> None:
    with Starter(KILLED, run.folder, moment) as process:
        assert process.ended() == -signal.SIGKILL
    assert run.state() is JobState.ALIVE
    await ready.read()
    with pytest.raises(CannotStart, match="was started before"):
        start(Run(run.folder), "exit 8")
    waiting = asyncio.create_task(run.wait())
    await go.write()
    assert await waiting == 7
    assert run.state() is JobState.ENDED
    assert (tmp_path / "count").read_text() == "\n"


async def test_the_exit_status_of_an_unwatched_process_is_kept(
    run: Run, ready: Fifo, go: Fifo
) -> None:
    with Starter(KILLED, run.folder, "after start") as process:
        assert process.ended() == -signal.SIGKILL
    await ready.read()
    await go.write()
    wait_until_free(run)
    assert run.state() is JobState.ENDED
    assert await run.wait() == 7


FORKING = """
import os, signal, sys, time
from pathlib import Path
from pgcoord.runs.run import Run
place, number = Path(sys.argv[1]), int(sys.argv[2])
starts = []
for i in range(3):
    before = time.perf_counter()
    Run(place / f"first {i}").start(["/bin/true"], directory=place, environment={})
    starts.append(time.perf_counter() - before)
# The last one has time enough, on a machine however slow.
step = 4 * max(starts) / number
for i in range(number):
    run = Run(place / f"run {i}")
    script = "echo >>$0.count; exit 7"
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(said, b".")
        run.start(["sh", "-c", script, run.folder], directory=place, environment={})
        signal.pause()
    os.read(heard, 1)
    time.sleep(i * step)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.scale
async def test_wherever_a_starter_is_killed_the_command_runs_once(
    make_run: MakeRun, tmp_path: Path
) -> None:
    runs = [make_run(f"run {number}") for number in range(60)]
    with Starter(FORKING, tmp_path, len(runs)) as process:
        assert await asyncio.to_thread(process.ended) == 0
    started = 0
    for run in runs:
        if run.state() is JobState.NEVER_STARTED:
            run.start(
                ["sh", "-c", "echo >>$0.count; exit 7", str(run.folder)],
                directory=tmp_path,
                environment={},
            )
        else:
            started += 1
        assert await run.wait() == 7
        assert Path(f"{run.folder}.count").read_text() == "\n"
    print(f"{started} of {len(runs)} had been started when their starter was killed")
    assert 0 < started < len(runs)


async def test_a_run_whose_wrapper_is_killed_is_lost_to_an_adopter(
    run: Run, ready: Fifo, go: Fifo
) -> None:
    with Starter(KILLED, run.folder, "after start") as process:
        assert process.ended() == -signal.SIGKILL
    await ready.read()
    waiting = asyncio.create_task(run.wait())
    await asyncio.sleep(0)
    os.kill(pid_of(run), signal.SIGKILL)
    assert await waiting is None
    assert (run.state(), run.exit_status) == (JobState.LOST, None)
    with pytest.raises(CannotStart, match="was started before"):
        start(run, "exit 8")
    [command] = await run.end_left_behind(LONG)
    assert "read x <go" in command.command
    assert not is_living(command.pid)


async def test_a_killed_wrapper_has_a_status_for_its_parent_and_its_command_is_ended(
    run: Run, ready: Fifo, go: Fifo
) -> None:
    start(run, "echo $$ >ready; read x <go")
    command = int(await ready.read())
    os.kill(pid_of(run), signal.SIGKILL)
    assert await run.wait() == 137
    assert run.state() is JobState.ENDED
    assert Run(run.folder).state() is JobState.LOST
    assert [left.pid for left in run.left_behind()] == [command]
    assert await Run(run.folder).end(LONG) == []
    assert not is_living(command)


async def test_a_full_disk_does_not_lose_the_exit_status(make_run: MakeRun, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        run = make_run("disk/run")
        start(run, "head -c 1000000 /dev/zero; exit 9")
        assert await run.wait() == 9
        assert Run(run.folder).exit_status == 9
        other = make_run("disk/other")
        with pytest.raises(CannotStart, match="No space left on device"):
            start(other, "exit 0")
        assert other.state() is JobState.NEVER_STARTED
        # Its attempt ends with this: it must not start once there is room again.
        assert other.give_up()
        assert other.state() is JobState.GIVEN_UP
        (run.folder / "log").unlink()
        with pytest.raises(CannotStart, match="was given up"):
            start(other, "exit 0")


def test_a_wrapper_that_cannot_write_its_pid_runs_nothing(tmp_path: Path) -> None:
    with open("/dev/full", "r+b", buffering=0) as full:
        words = ["/bin/sh", "-c", launcher._WRAPPER, "pgcoord", "touch", "ran"]
        assert subprocess.run(words, stdin=full, cwd=tmp_path).returncode == 125
    assert not (tmp_path / "ran").exists()


# Waiting


async def test_a_cancelled_wait_leaves_the_process(run: Run, ready: Fifo, go: Fifo) -> None:
    start(run, "echo >ready; read x <go; exit 7")
    await ready.read()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run.wait()
    assert run.state() is JobState.ALIVE
    await go.write()
    assert await run.wait() == 7


async def test_nothing_is_left_of_the_wrapper_after_wait(run: Run) -> None:
    start(run, "exit 0")
    await asyncio.gather(run.wait(), run.wait(), Run(run.folder).wait())
    assert not Path(f"/proc/{run.pid}").exists()


async def test_a_forgotten_run_lives_on_without_a_warning(run: Run, ready: Fifo, go: Fifo) -> None:
    forgotten = Run(run.folder)
    start(forgotten, "echo >ready; read x <go; exit 7")
    await ready.read()
    del forgotten  # pytest makes an error of a ResourceWarning
    assert run.state() is JobState.ALIVE
    await go.write()
    assert await run.wait() == 7
    assert not Path(f"/proc/{run.pid}").exists()


async def test_a_wrapper_that_cannot_be_seen_is_waited_for_by_its_lock(
    run: Run, tmp_path: Path
) -> None:
    run.folder.mkdir()
    status = run.folder / "status"
    status.write_text("1000000000 elsewhere 1\n".ljust(128))
    with status.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a wrapper in another container would
        assert run.state() is JobState.ALIVE
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await run.wait()
        assert await run.end(NONE) == []
    assert await run.wait() is None
    assert run.state() is JobState.LOST


# Ending


async def test_a_terminated_command_may_still_set_its_exit_status(
    run: Run, ready: Fifo, go: Fifo
) -> None:
    start(run, "trap 'exit 3' TERM; echo >ready; while :; do read x <go; done")
    await ready.read()
    assert await run.end(LONG) == []
    assert (run.state(), run.exit_status) == (JobState.ENDED, 3)
    assert not Path(f"/proc/{run.pid}").exists()


async def test_end_kills_a_process_that_ignores_sigterm_and_the_status_is_still_written(
    run: Run, ready: Fifo, go: Fifo
) -> None:
    start(run, "trap '' TERM; sh -c 'read x <go' & echo $! $$ >ready; read x <go")
    members = [int(pid) for pid in (await ready.read()).split()]
    assert await run.end(timedelta(milliseconds=50)) == []
    assert not any(is_living(pid) for pid in members)
    assert Run(run.folder).exit_status == 137


async def test_end_reaches_other_groups_of_the_session(run: Run, ready: Fifo, go: Fifo) -> None:
    start(run, "exec timeout 1000 sh -c 'echo $$ >ready; read x <go'")
    member = int(await ready.read())
    assert os.getpgid(member) != run.pid
    assert await run.end(LONG) == []
    assert run.state() is JobState.ENDED
    assert not is_living(member)


async def test_end_reaches_a_stopped_run(run: Run, ready: Fifo, go: Fifo) -> None:
    start(run, "echo >ready; read x <go")
    await ready.read()
    os.killpg(pid_of(run), signal.SIGSTOP)
    assert await run.end(LONG) == []
    assert Run(run.folder).exit_status == 143


async def test_end_right_after_start_ends(make_run: MakeRun) -> None:
    async with asyncio.timeout(PATIENCE):
        for number in range(40):
            run = make_run(f"run {number}")
            start(run, "sleep 1000")
            assert await run.end(LONG) == []
            assert Run(run.folder).exit_status == 143


async def test_end_does_nothing_to_a_run_that_has_ended_or_never_began(run: Run) -> None:
    assert await run.end(LONG) == []
    assert run.state() is JobState.NEVER_STARTED
    start(run, "exit 7")
    await run.wait()
    assert await run.end(LONG) == []
    assert run.exit_status == 7


DAEMON = """
setsid sh -c 'setsid sh -c "echo \\$\\$ >ready; read x <go" &' </dev/null >/dev/null 2>&1
"""


async def test_a_daemon_is_found_named_and_ended(run: Run, ready: Fifo, go: Fifo) -> None:
    start(run, DAEMON)
    daemon = int(await ready.read())
    assert await run.wait() == 0
    assert os.getsid(daemon) == daemon
    [left] = run.left_behind()
    assert left.pid == daemon
    assert left.command.startswith("sh -c echo $$ >ready")
    assert await run.end(LONG) == [left]
    assert is_living(daemon)
    assert await run.end_left_behind(LONG) == [left]
    assert not is_living(daemon)
    assert await run.end_left_behind(LONG) == []


async def test_a_daemon_that_ignores_term_is_killed(run: Run, ready: Fifo, go: Fifo) -> None:
    start(run, f"trap '' TERM{DAEMON}")
    daemon = int(await ready.read())
    assert await run.wait() == 0
    [left] = await run.end_left_behind(timedelta(milliseconds=50))
    assert left.pid == daemon
    assert not is_living(daemon)


async def test_a_child_in_the_background_without_our_environment_is_found(
    run: Run, ready: Fifo, go: Fifo
) -> None:
    start(run, "env -i /bin/sh -c 'echo $$ >ready; read x <go' &")
    child = int(await ready.read())
    assert await run.wait() == 0
    assert [left.pid for left in await run.end_left_behind(LONG)] == [child]
    assert not is_living(child)


async def test_another_run_is_never_touched(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name) for name in ("1", "11", "1/prompt.md")]
    for number, run in enumerate(runs):
        come, held = Fifo(run.folder.parent / f"come{number}"), f"held{number}"
        os.mkfifo(run.folder.parent / held)
        start(run, f"echo >come{number}; read x <{held}")
        await come.read()
    assert await runs[0].end(LONG) == []
    assert await runs[0].end_left_behind(LONG) == []
    assert [run.state() for run in runs] == [JobState.ENDED, JobState.ALIVE, JobState.ALIVE]


@pytest.mark.parametrize("started", ["same boot", "another boot"])
async def test_a_stranger_with_the_pid_of_a_lost_wrapper_is_left_alone(
    run: Run, ready: Fifo, go: Fifo, started: str
) -> None:
    words = ["sh", "-c", "cat go & echo >ready; wait"]
    with subprocess.Popen(words, cwd=go.path.parent, start_new_session=True) as stranger:
        await ready.read()
        boot, ticks = str(linux.start_time(stranger.pid)).split()
        then = f"{boot} {int(ticks) - 1}" if started == "same boot" else f"another {ticks}"
        run.folder.mkdir()
        (run.folder / "status").write_text(f"{stranger.pid} {then}\n".ljust(128))
        assert run.state() is JobState.LOST
        assert run.pid == stranger.pid
        async with asyncio.timeout(PATIENCE):
            assert await run.wait() is None
        assert await run.end(LONG) == await run.end_left_behind(LONG) == run.left_behind() == []
        assert stranger.poll() is None
        os.killpg(stranger.pid, signal.SIGKILL)
        os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
        assert await run.wait() is None
        assert stranger.wait() == -signal.SIGKILL  # nor is its own exit status taken


# The log


def bytes_read() -> int:
    """How much this thread has read so far."""
    io = Path("/proc/thread-self/io").read_text()
    return int(io.partition("rchar: ")[2].split()[0])


async def test_the_tail_of_a_large_log_is_read_alone(run: Run) -> None:
    run.folder.mkdir()
    with run.log.path.open("wb") as log:
        log.truncate(100_000_000)  # a hole of NULs
        log.seek(0, os.SEEK_END)
        log.write(b"".join(b"line %d\n" % number for number in range(1000)))
    before = bytes_read()
    tail = run.log.tail()
    read = bytes_read() - before
    assert tail.split("\n") == [f"line {number}" for number in range(980, 1000)]
    print(f"tail of 100 MB: {read} bytes read")
    assert read < 200_000
    assert run.log.tail(lines=1) == "line 999"
    assert run.log.tail(characters=5) == "e 999"


async def test_the_tail_of_a_log_is_always_text(run: Run) -> None:
    assert run.log.tail() == ""
    run.folder.mkdir()
    run.log.path.write_bytes(b"\xff\0\xed\xa0\x80 caf\xc3\xa9\n\xe2\x82")
    tail = run.log.tail()
    assert tail.endswith(" caf\u00e9\n\ufffd")
    assert "\0" not in tail
    assert tail.encode()
    run.log.path.write_bytes(b"\x1b]0;tests\x07\x1b[1;31mred\x1b[0m\n")
    assert run.log.tail() == "red"
    run.log.path.write_text("\U0001f600" * 10_000)
    assert run.log.tail() == "\U0001f600" * 4000


async def test_the_cause_of_a_failure_is_shown_before_the_output_of_the_clean_up(run: Run) -> None:
    run.folder.mkdir()
    clean_up = [f"removing {number}" for number in range(60)]
    lines = ["$ make", "0 errors so far", "Traceback", '  File "a"', "ValueError: no port"]
    run.log.path.write_text("\n".join([*lines, *clean_up]) + "\n")
    told = run.log.excerpt().split("\n")
    assert told == [
        "ValueError: no port",
        "… 52 lines …",
        *clean_up[-8:],
        "… before it:",
        *lines[:-1],
    ]
    run.log.path.write_text("\n".join(clean_up))
    assert run.log.excerpt().split("\n") == clean_up[-20:]


# How long it takes


@pytest.mark.scale
async def test_the_time_that_starting_and_scanning_take(make_run: MakeRun) -> None:
    """Of the processor: how long each takes by the clock depends on what else the machine does."""
    starts, scans = [], []
    for number in range(50):
        run = make_run(f"run {number}")
        before = time.process_time()
        start(run, "true")
        starts.append(time.process_time() - before)
        assert await run.wait() == 0
        before = time.process_time()
        run.left_behind()
        scans.append(time.process_time() - before)
    for what, times in [("start()", starts), ("scan", scans)]:
        print(f"{what}: {statistics.median(times) * 1e3:.2f} ms")
        assert statistics.median(times) < 0.1
