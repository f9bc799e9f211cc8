"""What phases write: printed, followed, kept within bounds; and what a coordinator says itself."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from support import PATIENCE, wait_until
from support.database import Connection, add_feature, claim
from support.desk import CONFIGURATION, Desk, Program, until

from pgcoord.coordination.launching import JobState
from pgcoord.runs.logs import Log
from pgcoord.runs.retention import remove_old_runs
from pgcoord.runs.run import Run

TWICE = f'{CONFIGURATION}max_attempts = 2\nretry_delay = "0s"\n'


@pytest.mark.scale
def test_logs_prints_the_log_byte_for_byte(desk: Desk) -> None:
    desk.write("pgcoord.toml", f'{CONFIGURATION}max_attempts = 2\nretry_delay = "0s"\n')
    script = r"test -e tried && exec sh bytes.sh; touch tried; echo first; exit 1"
    desk.write("bytes.sh", r"seq 30000; echo oops >&2; printf '\377\000 no end'")
    desk.say("run", desk.plan(script))
    expected = b"".join(b"%d\n" % n for n in range(1, 30001)) + b"oops\n\xff\0 no end"

    def logs(*arguments: str) -> bytes:
        return desk.call_for_bytes("logs", "1.1", *arguments).stdout

    assert logs() == expected
    assert logs("--attempt", "1") == b"first\n"
    assert logs("-n", "0") == b""
    assert logs("-n", "1") == b"\xff\0 no end"
    assert logs("-n", "3") == b"30000\noops\n\xff\0 no end"
    assert logs("-n", "20002") == expected[expected.index(b"10001\n") :]
    assert logs("-n", "99999") == expected
    assert logs("--attempt", "1", "-n", "1") == b"first\n"
    missing = desk.call("logs", "1.1", "--attempt", "3")
    assert (missing.returncode, missing.stderr) == (
        4,
        "pgcoord: queue-1-1 has no attempt 3\n  Its latest one is attempt 2.\n",
    )


def test_logs_of_another_machine_are_refused_with_the_name_of_the_machine(
    desk: Desk, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    result = desk.call("logs", "1.1")
    assert result.returncode == 3
    assert re.match(
        r"pgcoord: the log of queue-1-1, attempt 1, is on here: /runs/.*/log$", result.stderr
    )


# --- Following


def test_a_followed_log_goes_on_with_the_next_attempt_until_the_phase_ends(desk: Desk) -> None:
    desk.write("pgcoord.toml", TWICE)
    gate = desk.gate()
    desk.start("serve").until("leading")
    desk.say("submit", desk.plan(f"echo try $PGCOORD_ATTEMPT; cat {gate}; exit $(wc -l < tries)"))
    desk.write("tries", "\n\n\n")
    follow = desk.start("logs", "-f", "1.1")
    follow.until("attempt 1, adw-.*\ntry 1\n")
    gate.write_text("gone on with\n")
    follow.until("gone on with\n(?s:.*)attempt 2, adw-.*\ntry 2\n")
    desk.write("tries", "")
    gate.write_text("and again\n")
    assert follow.wait() == 0
    assert re.search(r"and again\npgcoord: queue-1-1: completed at .*\n$", follow.output)
    assert follow.output.count("try ") == 2


def test_a_followed_log_waits_for_a_retry_that_is_due_and_says_when(desk: Desk) -> None:
    desk.write("pgcoord.toml", f'{CONFIGURATION}max_attempts = 2\nretry_delay = "1h"\n')
    desk.start("serve").until("leading")
    desk.say("submit", desk.plan("echo try $PGCOORD_ATTEMPT; test $PGCOORD_ATTEMPT = 2"))
    follow = desk.start("logs", "-f", "1.1")
    follow.until("queue-1-1: is tried again at .*, after: exited with status 1\n")
    assert "try 1\n" in follow.output
    desk.say("retry", "1.1")
    assert follow.wait() == 0
    assert re.search(r"attempt 2, .*\ntry 2\npgcoord: queue-1-1: completed at", follow.output)


def test_a_log_can_be_followed_before_there_is_any(desk: Desk, conn: Connection) -> None:
    serve = desk.start("serve")
    serve.until("leading")
    gate = desk.gate()
    desk.say("submit", desk.plan(f"cat {gate}", "echo hello; exit 3"))
    follow = desk.start("logs", "-f", "1.2")
    follow.until("pgcoord: queue-1-2: waits for phase 1, running\n")
    gate.write_text("x")
    assert follow.wait() == 0
    assert re.search(
        r"attempt 1, .*\nhello\npgcoord: .* failed at .*: exited with status 3\n$", follow.output
    )


def test_a_note_begins_a_line_where_the_log_has_left_one_open(desk: Desk) -> None:
    gate = desk.gate()
    desk.start("serve").until("leading")
    desk.say("submit", desk.plan(f"printf 'no end'; cat {gate}"))
    follow = desk.start("logs", "-f", "1.1")  # both on one pipe, as on one screen
    follow.until("no end")
    gate.write_text("")
    assert follow.wait() == 0
    assert re.search(r"attempt 1, .*\nno end\npgcoord: .*: completed at .*\n$", follow.output)
    apart = desk.call_for_bytes("logs", "-f", "1.1")
    assert apart.stdout == b"no end"
    assert b"\n\n" not in apart.stderr


def test_following_outlives_the_coordinator(desk: Desk) -> None:
    gate = desk.gate()
    serve = desk.start("serve")
    serve.until("leading")
    desk.say("submit", desk.plan(f"echo one; cat {gate}; cat {gate}"))
    follow = desk.start("logs", "-f", "1.1")
    follow.until("\none\n")
    serve.send(signal.SIGKILL)
    serve.wait()
    gate.write_text("two\n")
    follow.until("\ntwo\n")
    desk.start("serve").until("taken over")
    gate.write_text("three\n")
    assert follow.wait() == 0
    assert re.search("one\ntwo\nthree\npgcoord: queue-1-1: completed at", follow.output)


def test_following_sends_the_database_no_statement_without_events(
    desk: Desk, conn: Connection, dsn: str
) -> None:
    gate = desk.gate()
    desk.start("serve").until("leading")
    desk.say("submit", desk.plan("; ".join([f"cat {gate}"] * 9)))
    follow = desk.start("logs", "-f", "1.1", "--dsn", f"{dsn} application_name=follower")
    follow.until("attempt 1")

    def asked() -> list[dict[str, object]]:
        return conn.execute(
            "select pid, query_start from pg_stat_activity where application_name = 'follower'"
        ).fetchall()

    gate.write_text("line 0\n")
    follow.until("line 0\n")
    before = asked()
    for number in range(1, 4):  # takes a second or so, and a sign of life is asked for after ten
        gate.write_text(f"line {number}\n")
        follow.until(f"line {number}\n")
    assert len(before) == 1
    assert asked() == before


def test_following_ends_cleanly_with_ctrl_c(desk: Desk) -> None:
    gate = desk.gate()
    desk.start("serve").until("leading")
    desk.say("submit", desk.plan(f"echo one; cat {gate}"))
    follow = desk.start("logs", "-f", "1.1", tty=True)
    follow.until("one")
    follow.send(signal.SIGINT)
    assert follow.wait() == 130
    assert follow.output.endswith("one\r\n")


def test_following_ends_when_its_output_is_closed(desk: Desk) -> None:
    gate = desk.gate()
    desk.start("serve").until("leading")
    desk.say("submit", desk.plan(f"echo one; cat {gate}"))
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "wb") as output:
        result = subprocess.run(
            [sys.executable, "-m", "pgcoord", "logs", "-f", "1.1"],
            cwd=desk.folder,
            env=desk.environment,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert "Traceback" not in result.stderr


def test_only_the_last_lines_of_the_first_attempt_are_printed_when_following(desk: Desk) -> None:
    desk.write("pgcoord.toml", TWICE)
    desk.say("run", desk.plan("seq 5; test $PGCOORD_ATTEMPT = 2"))
    result = desk.call("logs", "-f", "1.1", "-n", "2")
    assert (result.returncode, result.stdout) == (0, "4\n5\n")
    result = desk.call("logs", "-f", "1.1", "--attempt", "1", "-n", "1")
    assert (result.returncode, result.stdout) == (0, "5\n")
    assert "attempt 2" not in result.stderr


def test_a_log_of_another_machine_cannot_be_followed(
    desk: Desk, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: []})
    follow = desk.start("logs", "-f", "1.1")
    follow.until("is 1st in line")
    claim(conn, epoch)
    follow.until("the log of queue-1-1, attempt 1, is on here: /runs/.*/log\n")
    conn.execute("select pgcoord.give_up_attempt(id, 'failed', 'broke') from pgcoord.attempt")
    assert follow.wait() == 0
    follow.until("queue-1-1: failed at .*: broke\n$")
    result = desk.call("logs", "-f", "1.1")
    assert result.returncode == 3
    assert " is on here: /runs/" in result.stderr


# --- Size


def test_a_log_that_lost_its_middle_and_has_its_old_size_again_is_followed(
    desk: Desk, dsn: str
) -> None:
    gate = desk.gate()
    desk.start("serve").until("leading")
    desk.say("submit", desk.plan(f"echo begins; seq 1000 1100; cat {gate}"))
    follow = desk.start("logs", "-f", "1.1")
    follow.until("\n1100\n")
    log = log_of(dsn)
    log.write_text(f"begins\n{'-' * (log.stat().st_size - 13)}\nlast\n")
    gate.write_text("between\n")
    assert follow.wait() == 0
    assert "\nlast\nbetween\n" in follow.output


def test_a_log_that_grows_too_large_keeps_its_beginning_and_its_end(desk: Desk, dsn: str) -> None:
    desk.write("pgcoord.toml", f'{CONFIGURATION}[log]\nmax_size = "40kB"\n')
    gate = desk.gate()
    desk.start("serve").until("leading")
    desk.say("submit", desk.plan(f"seq 20000; cat {gate}; seq 20001 40000; exit 7"))
    follow = desk.start("logs", "-f", "1.1")
    wait_until(lambda: log_of(dsn).exists() and "left out here" in log_of(dsn).read_text())
    gate.write_text("between\n")
    assert follow.wait() == 0
    assert "\n40000\n" in follow.output
    log = log_of(dsn).read_text()
    assert len(log) < 40_000
    head, left_out, end = re.split(r"\n-- pgcoord: (\d+) bytes were left out here --\n", log)
    assert head.startswith("1\n2\n3\n")
    assert end.endswith("39999\n40000\n")
    written = sum(len(f"{number}\n") for number in range(1, 40001)) + len("between\n")
    assert len(head) + int(left_out) + len(end) == written


def test_a_process_never_notices_that_its_log_is_cut(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.prepare("")
    gate, enough = tmp_path / "gate", tmp_path / "enough"
    os.mkfifo(gate)
    script = (
        f"i=0; while [ $i -lt 60000 ] || [ ! -e {enough} ]; do i=$((i+1)); echo line $i; done;"
        f" read _ < {gate}; echo end >&2; exit 5"
    )
    run.start(["sh", "-c", script], directory=tmp_path, environment={"PATH": os.environ["PATH"]})
    cuts = 0
    reader = None
    while reader is None:  # what is written during a cut may be left out, so the end comes after
        before = run.log.path.stat().st_size
        run.log.bound(50_000)
        cuts += before > 50_000
        if cuts > 3:
            enough.touch()
        with suppress(OSError):  # until the process has written all, and reads
            reader = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
    os.write(reader, b"\n")
    os.close(reader)
    while run.state() is JobState.ALIVE:
        pass
    run.log.bound(50_000)
    assert run.exit_status == 5
    text = run.log.path.read_text()
    assert len(text) <= 50_000
    head, left_out, end = re.split(r"\n-- pgcoord: (\d+) bytes were left out here --\n", text)
    assert head.splitlines()[:-1] == [f"line {n}" for n in range(1, len(head.splitlines()))]
    assert end.endswith("\nend\n")
    assert int(left_out) > 400_000


def test_a_log_within_its_size_is_left_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log.bound(10)  # there is none
    run.log.path.write_text("0123456789")
    run.log.bound(10)
    assert run.log.path.read_text() == "0123456789"


# --- Retention


def test_a_search_finds_lines_wherever_they_are_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    rng = random.Random(1)
    lines = [b"x" * rng.randrange(200) for _ in range(30_000)]
    wanted = sorted(rng.sample(range(len(lines)), 150))
    for number in wanted:
        lines[number] += b" Needle " + lines[number]
    log.write_bytes(b"\n".join(lines))
    found, more = Log(tmp_path).search("needle")
    assert not more
    assert [each.offset for each in found] == [
        sum(len(line) + 1 for line in lines[:number]) for number in wanted
    ]
    assert {each.match for each in found} == {"Needle"}
    # One line of several megabytes, with what is looked for across any boundary of blocks.
    for place in (0, 999_997, 1_999_997, 2_500_000):
        log.write_bytes(b"y" * place + b"needle" + b"z" * 3_000_000)
        [one], more = Log(tmp_path).search("needle")
        assert (one.match, one.before[-1:], one.after[:1], more) == (
            "needle",
            "y" if place else "",
            "z",
            False,
        )
    log.write_bytes(b"needle\n" * 201)
    assert len(Log(tmp_path).search("needle")[0]) == 200
    assert Log(tmp_path).search("needle")[1]
    log.write_bytes(b"")
    assert Log(tmp_path).search("needle") == ([], False)


def test_a_log_may_shrink_during_a_search(tmp_path: Path) -> None:
    """As when its process empties it, in the middle of the search."""
    log = tmp_path / "log"
    log.write_bytes(b"a line of the log, such as there are many\n" * 1_500_000)
    search = "import sys, pathlib\nfrom pgcoord.runs.logs import Log\nprint('searches')\n"
    search += "for _ in range(5): Log(pathlib.Path(sys.argv[1]).parent).search('zebra')\n"
    command = [sys.executable, "-u", "-c", search, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as searching:
        assert searching.stdout is not None
        assert searching.stdout.readline()
        opened = Path(f"/proc/{searching.pid}/fd")
        while str(log) not in {os.path.realpath(each) for each in opened.iterdir()}:
            assert searching.poll() is None
        os.truncate(log, 1_000)
        assert searching.wait(PATIENCE) == 0


@pytest.mark.scale
def test_runs_that_ended_long_ago_are_removed_and_others_never(
    desk: Desk, dsn: str, conn: Connection
) -> None:
    gate = desk.gate()
    desk.say("run", desk.plan("echo old"))
    desk.say("run", desk.plan("echo new"))
    serve = desk.start("serve")
    serve.until("leading")
    desk.say("submit", desk.plan(f"cat {gate}"))
    serve.until("ready → running")
    serve.send(signal.SIGTERM)
    serve.wait()
    old, new, alive = (
        Path(row["folder"])
        for row in conn.execute("select folder from pgcoord.attempt order by id").fetchall()
    )
    strange = old.parent / "1-some-of-mine"
    strange.mkdir()
    for each in (old, alive, strange):
        make_old(each, days=3)
    desk.write("pgcoord.toml", f'{CONFIGURATION}[log]\nretention = "2d"\n')
    serve = desk.start("serve")
    serve.until("runs removed that ended longer ago than 2 days, 0:00:00: 1\n")
    assert [each.exists() for each in (old, new, alive, strange)] == [False, True, True, True]
    gone = desk.call("logs", "1.1")
    assert (gone.returncode, "or it was removed" in gone.stderr) == (4, True)
    gate.write_text("still here\n")
    until(dsn, "bool_and(status = 'completed') from phase_queue")
    assert desk.say("logs", "3.1") == "still here"


def test_a_run_is_removed_only_without_living_processes(tmp_path: Path) -> None:
    def run(name: str, script: str = "true") -> Run:
        run = Run(tmp_path / name)
        run.prepare("")
        run.start(
            ["sh", "-c", script], directory=tmp_path, environment={"PATH": os.environ["PATH"]}
        )
        return run

    ended, spared, named_otherwise = run("1-0123abcd"), run("2-0123abcd"), run("3-x")
    alive = run("4-0123abcd", "sleep 1000")
    wait_until(
        lambda: all(each.state() is JobState.ENDED for each in (ended, spared, named_otherwise))
    )
    (tmp_path / "5-0123abcd").mkdir()  # named as a run, and none
    (tmp_path / "5-0123abcd" / "notes").touch()
    for name in ("7-0123abcd", "8-0123abcd", "9-0123abcd"):  # of jobs whose nodes share no folder
        (tmp_path / name).mkdir()
    Run(tmp_path / "8-0123abcd").give_up()
    Log(tmp_path / "9-0123abcd").extend(b"said\n")
    (tmp_path / "6-0123abcd").symlink_to(named_otherwise.folder)
    day = timedelta(days=1)
    try:
        assert remove_old_runs(tmp_path, day, spared={spared.folder}) == 0, "nothing is old"
        for each in tmp_path.iterdir():
            make_old(each, days=2)
        assert remove_old_runs(tmp_path, day, spared={spared.folder}) == 4
        left = sorted(each.name[0] for each in tmp_path.iterdir())
        assert left == ["2", "3", "4", "5", "6"]
    finally:
        os.killpg(alive.pid or 0, signal.SIGKILL)
    assert remove_old_runs(tmp_path / "nowhere", day, spared=()) == 0


# --- What a coordinator says


def test_a_coordinator_logs_a_line_a_transition(desk: Desk, dsn: str, conn: Connection) -> None:
    desk.write("pgcoord.toml", TWICE)
    gate = desk.gate()
    serve = desk.start("serve")
    serve.until("leading")
    desk.say("submit", desk.plan("echo s3cret; exit 3", name="a.md"))
    until(dsn, "status = 'failed' from phase_queue")
    desk.say("submit", desk.plan(f"cat {gate}", name="b.md"))
    serve.until("queue-2-1 ready → running")
    conn.execute("select pgcoord.complete_phase('queue-2-1')")
    serve.until("queue-2-1 running → completed")
    gate.write_text("x")
    serve.send(signal.SIGTERM)
    serve.wait()
    moves = [line.split("INFO     ")[1] for line in serve.output.splitlines() if "→" in line]
    patterns = [
        r"queue-1-1 queued → ready: attempt 1, slot 1, claimed as adw-[0-9a-f]{8}",
        r"queue-1-1 ready → running: attempt 1, slot 1, started, pid \d+",
        r"queue-1-1 running → queued: attempt 1, slot 1, exited with status 3",
        r"queue-1-1 queued → ready: attempt 2, slot 1, claimed as adw-[0-9a-f]{8}",
        r"queue-1-1 ready → running: attempt 2, slot 1, started, pid \d+",
        r"queue-1-1 running → failed: attempt 2, slot 1, exited with status 3",
        r"queue-2-1 queued → ready: attempt 1, slot 1, claimed as adw-[0-9a-f]{8}",
        r"queue-2-1 ready → running: attempt 1, slot 1, started, pid \d+",
        r"queue-2-1 running → completed: attempt 1, slot 1, reported",
    ]
    assert len(moves) == len(patterns), moves
    # The next claim may be logged before the end that made it possible.
    for move, pattern in zip(sorted(moves, key=attempt_of), patterns, strict=True):
        assert re.fullmatch(pattern, move), move
    assert_no_secret(serve, conn)


def test_a_coordinator_logs_json_on_request(desk: Desk, conn: Connection) -> None:
    serve = desk.start("serve", "--log-format", "json")
    serve.until("leading")
    desk.say("submit", desk.plan("echo s3cret; exit 3"))
    serve.until("running → failed")
    serve.send(signal.SIGTERM)
    assert serve.wait() == 0
    records = [json.loads(line) for line in serve.output.splitlines()]
    assert all({"time", "level", "message"} <= record.keys() for record in records)
    moves = [record for record in records if "from" in record]
    assert [(move["from"], move["to"]) for move in moves] == [
        ("queued", "ready"),
        ("ready", "running"),
        ("running", "failed"),
    ]
    adw_id = conn.execute("select adw_id from pgcoord.attempt").fetchall()[0]["adw_id"]
    for move in moves:
        assert (move["phase"], move["attempt"], move["slot"]) == ("queue-1-1", 1, 1)
        assert (move["adw_id"], move["level"]) == (adw_id, "info")
    assert moves[-1]["reason"] == "exited with status 3"
    assert_no_secret(serve, conn)


def test_run_logs_json_too(desk: Desk) -> None:
    result = desk.call("run", desk.plan("true"), "--log-format", "json")
    assert result.returncode == 0
    moves = [json.loads(line) for line in result.stderr.splitlines()]
    assert [move["to"] for move in moves if "to" in move] == ["ready", "running", "completed"]
    assert moves[-1]["reason"] == "exited with status 0"


def attempt_of(move: str) -> tuple[str, ...]:
    found = re.match(r"(\S+) .* attempt (\d+)", move)
    assert found
    return found.groups()


def assert_no_secret(program: Program, conn: Connection) -> None:
    secrets = [row["secret"] for row in conn.execute("select secret from pgcoord.attempt")]
    assert secrets
    assert not [each for each in [*secrets, "s3cret"] if each in program.output]


def log_of(dsn: str) -> Path:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("select folder from pgcoord.attempt").fetchone()
    return Path(row[0], "log") if row else Path("/nonexistent")


def make_old(folder: Path, *, days: int) -> None:
    then = time.time() - days * 86400
    for each in (*folder.iterdir(), folder) if not folder.is_symlink() else (folder,):
        os.utime(each, (then, then), follow_symlinks=False)


def test_trouble_is_found_behind_lines_of_any_length(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.prepare("")
    log = run.log.path
    log.write_bytes(b"Error: here\n" + (b"x" * 999_999 + b"\n") * 3)
    assert run.log.find_trouble(None, before=True) == 0
    assert run.log.find_trouble(5_000, before=False) is None


@pytest.mark.parametrize(
    "line",
    [
        *("ERROR", "MyException: x", "it failed", "a failure", "fatal: x", "Panicked", "assertion"),
        *(
            "Traceback",
            "Cannot",
            "denied",
            "refused",
            "Not Found",
            "undefined",
            "killed",
            "aborted",
        ),
        *(
            "segmentation fault",
            "E  assert x",
            "e\tx",
            "\x1b[1mer\x1b[31mror\x1b[0m",
            "12 %\rerror",
        ),
    ],
)
def test_trouble_of_each_kind_is_found_in_either_direction(tmp_path: Path, line: str) -> None:
    run = Run(tmp_path / "run")
    run.prepare("")
    before = "elegant, even\nall is well\n" * 60_000
    run.log.path.write_text(f"{before}{line}\n{before}")
    assert run.log.find_trouble(None, before=True) == len(before)
    assert run.log.find_trouble(5_000, before=False) == len(before)


def test_logs_of_a_moved_project_are_found_or_reported_as_moved(desk: Desk, tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    there = Desk(before, desk.environment)
    there.call("run", there.plan("echo one"))
    assert there.say("logs", "1.1") == "one"
    after = before.rename(tmp_path / "after")
    moved = Desk(after, desk.environment)
    assert moved.say("logs", "1.1") == "one"
    assert moved.call("logs", "-f", "1.1").stdout == "one\n"
    elsewhere = desk.call("logs", "1.1")
    assert elsewhere.returncode == 4
    assert elsewhere.stderr.startswith(
        f"pgcoord: the folder of the runs does not exist any more: {before}/.pgcoord/runs\n  If"
    )
