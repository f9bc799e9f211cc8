"""One issue for each phase, on a fake GitHub that implements GitHub's contract."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from support import PATIENCE
from support.coordination import (
    Gate,
    Row,
    Watch,
    coordinator_process,
    make_coordinator,
    running,
)
from support.desk import CONFIGURATION, Desk
from support.fake_github import (
    LOGIN,
    REPOSITORY,
    TOKEN,
    FakeGitHub,
    prism,
    serving_github,
    why_no_prism,
)

from pgcoord.configuration.model import GitHub
from pgcoord.coordination.coordinator import Coordinator
from pgcoord.errors import InvalidConfiguration

LATER = timedelta(minutes=5)


@pytest.fixture(scope="module", params=["plain", pytest.param("prism", marks=pytest.mark.scale)])
def github_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FakeGitHub, str]]:
    """The fake, and its URLs: directly, and through Prism, which validates each request."""
    fake = FakeGitHub()
    with serving_github(fake) as url:
        if request.param == "plain":
            yield fake, url
            return
        if reason := why_no_prism():
            pytest.skip(reason)
        with prism(tmp_path_factory.mktemp("prism"), "proxy", url) as checked:
            yield fake, checked


@pytest.fixture
def github(github_server: tuple[FakeGitHub, str]) -> Iterator[FakeGitHub]:
    """GitHub with an empty repository."""
    fake, _ = github_server
    fake.reset()
    yield fake
    fake.let_go.set()


@pytest.fixture
def url(github_server: tuple[FakeGitHub, str]) -> str:
    """Where GitHub is asked."""
    return github_server[1]


def process(dsn: str, folder: Path, url: str) -> Any:
    """A coordinator in a process of its own."""
    return coordinator_process(
        dsn,
        folder,
        github=f"GitHub({REPOSITORY!r}, {url!r})",
        setting=f"os.environ['GITHUB_TOKEN'] = {TOKEN!r}",
    )


Make = Any


async def let_time_pass(watch: Watch, github: FakeGitHub, length: timedelta) -> None:
    """Move the time on, for the database and the fake GitHub."""
    github.pass_time(length)
    for table, column in (
        ("pgcoord.issue", "posted_at"),
        ("pgcoord.errand", "due_at"),
        ("public.phase_queue", "retry_at"),
        ("pgcoord.control", "issues_held_until"),
        ("pgcoord.control", "issues_held_since"),
    ):
        await watch.all(
            f"update {table} set {column} = {column} - %s where {column} is not null returning 1",
            length,
        )
    await watch.conn.execute("notify pgcoord_wake")


async def reasons(watch: Watch, queue_id: str = "queue-1-1") -> list[str]:
    return [
        row["words"]
        for row in await watch.all("select * from pgcoord.why(%s) where kind <> 'empty'", queue_id)
    ]


def has_failed(times: int, rows: list[Row]) -> bool:
    return bool(rows[0]["issues_failures"] == times and rows[0]["queued"])


def hangs(github: FakeGitHub) -> Any:
    """Wait until a call hangs."""
    return asyncio.to_thread(github.hanging.wait, PATIENCE)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prism takes longer than GitHub ever does, where others use the machine."""
    monkeypatch.setattr("pgcoord.github.client._TIMEOUT", PATIENCE)


@pytest.fixture
def make(dsn: str, tmp_path: Path, github_server: tuple[FakeGitHub, str]) -> Make:
    """Makes coordinators that make issues."""

    def make(**settings: Any) -> Coordinator:
        github = GitHub(REPOSITORY, github_server[1], **settings)
        environment = os.environ | {"GITHUB_TOKEN": TOKEN}
        return make_coordinator(dsn, tmp_path, github=github, environment=environment)

    return make


async def test_each_phase_has_an_issue_of_its_own_before_its_process_starts(
    make: Make, github: FakeGitHub, watch: Watch, tmp_path: Path
) -> None:
    say = f"echo $PGCOORD_ISSUE_NUMBER >> {tmp_path}/numbers"
    await watch.submit(say, (say, [1]))
    async with running(make()):
        await watch.until_statuses("completed", "completed")
        await watch.until_found("select from pgcoord.errand", nothing=True)
    assert (tmp_path / "numbers").read_text() == "1\n2\n"
    first, second = github.issues
    assert first["title"] == "Feature #1 - Phase 1: Step 1"
    assert [label["name"] for label in first["labels"]] == ["feature-1", "phase-1"]
    assert "- ✅ Phase 1: Step 1 (Issue #1) - completed" in second["body"]
    assert say in second["body"]
    assert [(issue["state"], issue["state_reason"]) for issue in github.issues] == [
        ("closed", "completed")
    ] * 2
    (comment,) = github.comments[1]
    assert re.match(r"✅ [*][*]Completed[*][*] after \d+ s \(attempt 1, adw-", comment["body"])
    assert "Next: Phase 2: Step 2" in comment["body"]
    assert len(github.comments[2]) == 1


async def test_killed_after_the_post_and_before_the_commit_leaves_one_issue(
    make: Make, github: FakeGitHub, watch: Watch, tmp_path: Path, dsn: str, url: str
) -> None:
    await watch.submit("true")
    github.fail("POST", "/issues", None, done=True)
    async with process(dsn, tmp_path, url) as killed:
        assert await hangs(github)
        killed.send(signal.SIGKILL)
        await killed.wait()
    github.let_go.set()
    async with running(make()):
        (row,) = await watch.until_statuses("completed")
    assert row["issue_number"] == 1
    assert len(github.issues) == 1
    assert await watch.all("select number, outcome from pgcoord.attempt") == [
        {"number": 1, "outcome": "completed"}
    ]


async def test_an_issue_that_is_not_listed_yet_is_waited_for_and_not_made_twice(
    make: Make, github: FakeGitHub, watch: Watch, tmp_path: Path, dsn: str, url: str
) -> None:
    await watch.submit("true")
    github.lag = timedelta(hours=1)
    github.fail("POST", "/issues", None, done=True)
    async with process(dsn, tmp_path, url) as killed:
        assert await hangs(github)
        killed.send(signal.SIGKILL)
        await killed.wait()
    github.let_go.set()
    async with running(make()):
        (row,) = await watch.until(
            lambda rows: rows[0]["retry_at"] is not None, "select * from phase_queue"
        )
        assert row["status"] == "queued"
        assert row["slot"] is None
        assert "may exist already, and is searched for again" in (await reasons(watch))[0]
        github.lag = timedelta(0)
        await let_time_pass(watch, github, timedelta(seconds=20))
        (row,) = await watch.until_statuses("completed")
    assert row["issue_number"] == 1
    assert row["attempts_used"] == 0
    assert len(github.issues) == 1


async def test_an_issue_that_was_certainly_not_made_is_posted_after_two_searches(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    await watch.submit("true")
    github.fail("POST", "/issues", 502)
    async with running(make()):
        await watch.until(lambda rows: rows[0]["retry_at"] is not None, "select * from phase_queue")
        assert len(github.issues) == 0
        await let_time_pass(watch, github, timedelta(seconds=25))
        await watch.until_statuses("completed")
    assert github.made("GET", "/issues") >= 1
    assert github.calls.count(f"POST /repos/{REPOSITORY}/issues") == 2
    assert len(github.issues) == 1


@pytest.mark.parametrize("status", [502, 503, 500, None])
async def test_an_answer_that_does_not_come_although_the_issue_was_made_leaves_one_issue(
    status: int | None,
    make: Make,
    github: FakeGitHub,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    is_direct = request.node.callspec.params["github_server"] == "plain"
    if status is None:  # of all calls: not so short that a slow machine fails the others, too
        monkeypatch.setattr("pgcoord.github.client._TIMEOUT", 5.0 if is_direct else 30.0)
    await watch.submit("true")
    github.fail("POST", "/issues", status, done=True)
    async with running(make()):
        (row,) = await watch.until(
            lambda rows: rows[0]["retry_at"] is not None, "select * from phase_queue"
        )
        assert row["status"] == "queued"
        github.let_go.set()
        await let_time_pass(watch, github, timedelta(seconds=25))
        (row,) = await watch.until_statuses("completed")
    assert (row["issue_number"], row["attempts_used"]) == (1, 0)
    assert len(github.issues) == 1


@pytest.mark.parametrize(
    ("status", "message", "headers", "seconds"),
    [
        (403, "You have exceeded a secondary rate limit", {"retry-after": "70"}, 70),
        (403, "You have exceeded a secondary rate limit", {}, 60),
        (429, "Too many requests", {"retry-after": "80"}, 80),
        (403, "API rate limit exceeded", {"x-ratelimit-remaining": "0", "reset": "100"}, 100),
    ],
)
async def test_a_limit_gives_the_slot_back_and_holds_off_the_others(
    status: int,
    message: str,
    headers: dict[str, str],
    seconds: int,
    make: Make,
    github: FakeGitHub,
    watch: Watch,
) -> None:
    until = int(time.time()) + seconds
    if "reset" in headers:
        headers = {**headers, "x-ratelimit-limit": "5000", "x-ratelimit-reset": str(until)}
    await watch.one("select pgcoord.set_slots(1)")
    await watch.submit("true", "true", "true")
    await watch.one("update phase_queue set issue_number = 99 where phase_number = 3 returning 1")
    github.fail("POST", "/issues", status, message=message, headers=headers)
    async with running(make()):
        rows = await watch.until_statuses("queued", "queued", "completed")
        assert github.calls.count(f"POST /repos/{REPOSITORY}/issues") == 1
        assert [row["attempts_used"] for row in rows] == [0, 0, 0]
        found = await watch.one(
            "select extract(epoch from retry_at) as until, extract(epoch from ended_at) as since"
            " from phase_queue join pgcoord.attempt using (queue_id) where phase_number = 1"
        )
        since = until - seconds if "reset" in headers else found["since"]
        # Later by what passes between GitHub's answer and the record of it.
        assert seconds - 3 <= found["until"] - since <= seconds + 60
        for queue_id in ("queue-1-1", "queue-1-2"):
            assert any(message in words for words in await reasons(watch, queue_id))
        assert await watch.all("select outcome from pgcoord.attempt where number = 1") == [
            {"outcome": "returned"},
            {"outcome": "completed"},
        ]
        await let_time_pass(watch, github, timedelta(seconds=seconds + 60))
        await watch.until_statuses("completed", "completed", "completed")
    assert len(github.issues) == 2


async def test_each_limit_without_a_time_waits_twice_as_long(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    await watch.submit("true")
    github.fail("POST", "/issues", 403, message="a secondary rate limit", times=3)
    waits = []
    async with running(make()):
        for failures in range(1, 4):
            (row,) = await watch.until(
                partial(has_failed, failures),
                "select extract(epoch from issues_held_until - (select max(ended_at)"
                " from pgcoord.attempt)) as seconds, issues_failures,"
                " (select status = 'queued' from phase_queue) as queued from pgcoord.control",
            )
            waits.append(float(row["seconds"]))
            await let_time_pass(watch, github, timedelta(seconds=1 + waits[-1]))
        await watch.until_statuses("completed")
        assert await watch.one(
            "select issues_failures, issues_held_since from pgcoord.control"
        ) == {
            "issues_failures": 0,
            "issues_held_since": None,
        }
    for wait, about in zip(waits, (60, 120, 240), strict=True):
        assert 0.9 * about < wait < 1.5 * about


async def test_a_network_that_is_away_costs_no_attempt(
    watch: Watch, dsn: str, tmp_path: Path, github: FakeGitHub
) -> None:
    await watch.submit("true")
    nowhere = GitHub(REPOSITORY, "http://127.0.0.1:9")
    environment = os.environ | {"GITHUB_TOKEN": TOKEN}
    coordinator = make_coordinator(dsn, tmp_path, github=nowhere, environment=environment)
    async with running(coordinator):
        (row,) = await watch.until(
            lambda rows: rows[0]["retry_at"] is not None, "select * from phase_queue"
        )
    assert (row["status"], row["attempts_used"]) == ("queued", 0)
    assert row["error_message"].startswith("GitHub cannot be reached: ")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"token": "another"}, "the credentials are not valid (Bad credentials)"),
        ({"has_issues": False}, "issues are disabled there"),
        ({"exists": False}, "no repository, or no right to see it (Not Found)"),
    ],
)
async def test_a_permanent_refusal_of_github_fails_the_phase_with_the_reason(
    broken: dict[str, Any], words: str, make: Make, github: FakeGitHub, watch: Watch
) -> None:
    for name, value in broken.items():
        setattr(github, name, value)
    await watch.submit("true")
    async with running(make()):
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"].startswith(f"GitHub, {REPOSITORY}: {words}")
    assert TOKEN not in row["error_message"]


@pytest.mark.parametrize("fault", [(502, "out of order"), (410, "disabled")])
async def test_a_phase_starts_without_an_issue_where_none_is_required(
    fault: tuple[int, str], make: Make, github: FakeGitHub, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"echo ,$PGCOORD_ISSUE_NUMBER, >> {tmp_path}/numbers")
    github.fail("POST", "/issues", fault[0], message="Out of order", times=100)
    async with running(make(required=False, wait=timedelta(minutes=1))):
        if fault[0] == 502:
            await watch.until(
                lambda rows: rows[0]["retry_at"] is not None, "select * from phase_queue"
            )
            assert not (tmp_path / "numbers").exists()
            await let_time_pass(watch, github, timedelta(minutes=2))
        await watch.until_statuses("completed")
    assert (tmp_path / "numbers").read_text() == ",,\n"
    (event,) = await watch.all("select reason from pgcoord.event where kind = 'issue_missing'")
    assert event["reason"].startswith("starts without an issue: GitHub")


async def test_a_repository_without_the_right_to_label_still_gets_its_issue(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    github.may_label = False
    await watch.submit("true")
    async with running(make()):
        (row,) = await watch.until_statuses("completed")
    assert row["issue_number"] == 1
    assert github.issues[0]["labels"] == []


async def test_labels_are_made_once_with_their_descriptions(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    await watch.submit("true", "true")
    await watch.submit("true")
    await watch.one("select pgcoord.set_slots(1)")
    async with running(make()):
        await watch.until_statuses(*["completed"] * 3)
    assert github.made("POST", "/labels") == 4
    assert {name: label["description"] for name, label in github.labels.items()} == {
        "feature-1": "Phases of planned feature 1: a",
        "feature-2": "Phases of planned feature 2: a",
        "phase-1": "Phase 1 of its feature",
        "phase-2": "Phase 2 of its feature",
    }
    assert {label["color"] for label in github.labels.values()} == {"1d76db", "c5def5"}


async def test_a_retried_phase_uses_its_issue_again(
    make: Make, github: FakeGitHub, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(f"echo 'it @broke'; test -e {tmp_path}/mended")
    async with running(make()):
        await watch.until_statuses("failed")
        await watch.until_found("select from pgcoord.errand", nothing=True)
        assert github.issue(1)["state_reason"] == "not_planned"
        (tmp_path / "mended").touch()
        await watch.one("select pgcoord.pause()")
        await watch.one("select pgcoord.retry_phase('queue-1-1', 'again')")
        await watch.until_found("select from pgcoord.errand", nothing=True)
        assert github.issue(1)["state"] == "open"
        await watch.one("select pgcoord.resume()")
        await watch.until_statuses("completed")
        await watch.until_found("select from pgcoord.errand", nothing=True)
    assert [issue["state_reason"] for issue in github.issues] == ["completed"]
    failed, completed = [comment["body"] for comment in github.comments[1]]
    assert re.match(r"❌ [*][*]Failed[*][*] after \d+ s \(attempt 1, adw-", failed)
    assert "```text\nexited with status 1\nit @broke\n```" in failed
    assert re.match(r"✅ [*][*]Completed[*][*] after \d+ s \(attempt 2, adw-", completed)


async def test_an_issue_that_a_person_has_closed_stays_closed(
    make: Make, github: FakeGitHub, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}")
    async with running(make()):
        await watch.until_statuses("running")
        github.issue(1).update(state="closed", state_reason="not_planned")
        gate.open()
        await watch.until_statuses("completed")
        await watch.until_found("select from pgcoord.errand", nothing=True)
    assert github.issue(1)["state_reason"] == "not_planned"
    assert github.made("PATCH", "/issues/1") == 0
    assert len(github.comments[1]) == 1


async def test_a_comment_is_made_once_though_its_answer_does_not_come(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    await watch.submit("true")
    github.fail("POST", "/comments", 502, done=True)
    async with running(make()):
        await watch.until_statuses("completed")
        await watch.until_found("select from pgcoord.errand where error is not null")
        await let_time_pass(watch, github, LATER)
        await watch.until_found("select from pgcoord.errand", nothing=True)
    assert len(github.comments[1]) == 1
    assert github.issue(1)["state"] == "closed"


async def test_an_issue_that_is_gone_is_not_asked_about_for_ever(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    await watch.submit("true")
    github.fail("POST", "/comments", 410, message="This issue was deleted")
    async with running(make()):
        await watch.until_statuses("completed")
        await watch.until_found("select from pgcoord.event where kind = 'issue_untold'")
    assert await watch.all("select from pgcoord.errand") == []


async def test_of_two_issues_of_a_phase_the_lower_number_is_kept(
    make: Make, github: FakeGitHub, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}")
    github.fail("POST", "/issues", 502)
    async with running(make()):
        await watch.until(lambda rows: rows[0]["retry_at"] is not None, "select * from phase_queue")
        await let_time_pass(watch, github, timedelta(seconds=25))
        await watch.until_statuses("running")
        body = github.issue(1)["body"]
        # One that a frozen coordinator posts, and one that somebody copied.
        github.add_issue("Feature #1 - Phase 1", body, [], LOGIN)
        github.add_issue("look at this", body, [], "somebody")
        await let_time_pass(watch, github, LATER)
        await watch.until_found("select from pgcoord.errand where kind = 'check'", nothing=True)
        gate.open()
        await watch.until_statuses("completed")
        await watch.until_found("select from pgcoord.errand", nothing=True)
    assert [issue["state_reason"] for issue in github.issues] == ["completed", "duplicate", None]


async def test_an_issue_found_after_the_end_of_its_phase_is_closed(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    await watch.submit("true")
    github.fail("POST", "/issues", 502, done=True)
    async with running(make()):
        await watch.until(lambda rows: rows[0]["retry_at"] is not None, "select * from phase_queue")
        await watch.one("select pgcoord.cancel_phase('queue-1-1', 'not needed, says @alice')")
        await let_time_pass(watch, github, LATER)
        await watch.until(
            lambda rows: bool(rows), "select from pgcoord.event where kind = 'issue_told'"
        )
    assert github.issue(1)["state_reason"] == "not_planned"
    (comment,) = github.comments[1]
    assert comment["body"].startswith("🚫 **Cancelled**")
    assert "@alice" not in comment["body"]


async def test_several_issues_are_made_at_once_and_no_transaction_is_open_meanwhile(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    await watch.submit("true", "true", "true")
    github.fail("POST", f"{REPOSITORY}/issues", None, times=3)
    async with running(make()):
        async with asyncio.timeout(PATIENCE):
            while github.at_once < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (
            await watch.all(
                "select state, query from pg_stat_activity where datname = current_database()"
                " and pid <> pg_backend_pid() and xact_start is not null"
            )
            == []
        )
        github.let_go.set()
        await watch.until_statuses("completed", "completed", "completed")
    assert len(github.issues) == 3


async def test_stopping_waits_for_an_issue_that_is_being_made(
    make: Make, github: FakeGitHub, watch: Watch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}")
    github.fail("POST", f"{REPOSITORY}/issues", None)
    async with running(make()) as coordinator:
        assert await hangs(github)
        coordinator.stop()
        await asyncio.sleep(0)  # it is notified of that
        github.let_go.set()
    (row,) = await watch.all("select status, issue_number, error_message from phase_queue")
    assert row == {"status": "running", "issue_number": 1, "error_message": None}
    async with running(make()):
        gate.open()
        await watch.until_statuses("completed")
    assert len(github.issues) == 1


async def test_a_cancelled_phase_that_waits_for_github_is_cancelled(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    await watch.submit("true")
    github.fail("POST", "/issues", 403, message="a secondary rate limit")
    async with running(make()):
        await watch.until(lambda rows: rows[0]["retry_at"] is not None, "select * from phase_queue")
        await watch.one("select pgcoord.cancel_phase('queue-1-1', 'enough')")
        await watch.until_statuses("cancelled")


async def test_a_coordinator_without_github_waits_for_nothing(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.one("select pgcoord_private.hold_issues('1 hour', false, 'a limit', null) as held")
    await watch.submit("true")
    async with running(make_coordinator(dsn, tmp_path)):
        (row,) = await watch.until_statuses("completed")
    assert row["issue_number"] is None


def test_a_plan_that_was_run_leaves_nothing_to_be_said(
    desk: Desk, github: FakeGitHub, url: str
) -> None:
    section = f'[github]\nrepository = "{REPOSITORY}"\napi_url = "{url}"\n'
    desk.write("pgcoord.toml", section + CONFIGURATION)
    desk.environment["GITHUB_TOKEN"] = TOKEN
    plan = desk.plan("true", "test $PGCOORD_ISSUE_NUMBER = 2", "exit 1")
    assert desk.call("run", plan).returncode == 1
    reasons = [issue["state_reason"] for issue in github.issues]
    assert reasons == ["completed", "completed", "not_planned"]
    assert [len(comments) for comments in github.comments.values()] == [1, 1, 1]


async def test_an_app_makes_issues_with_a_token_that_is_renewed_in_time(
    github: FakeGitHub, watch: Watch, dsn: str, url: str, tmp_path: Path
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "app.pem").write_bytes(pem)
    settings = GitHub(
        REPOSITORY,
        url,
        app_id="12",
        installation_id="34",
        private_key_file=tmp_path / "app.pem",
    )
    await watch.submit("true", ("true", [1]))
    github.pass_time(timedelta(minutes=-57))  # its tokens last for three minutes of ours
    async with running(make_coordinator(dsn, tmp_path, github=settings, environment={})):
        await watch.until_statuses("completed", "completed")
    assert len(github.issues) == 2
    assert github.made("POST", "/app/installations/34/access_tokens") >= 4


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "app.pem: no such file or directory"), ("no key", "app.pem: not a private key")],
)
def test_a_text_that_is_no_private_key_is_refused_before_anything_runs(
    text: str | None, words: str, dsn: str, tmp_path: Path
) -> None:
    key = tmp_path / "app.pem"
    if text:
        key.write_text(text)
    app = GitHub(REPOSITORY, app_id="12", installation_id="34", private_key_file=key)
    with pytest.raises(InvalidConfiguration, match=words):
        make_coordinator(dsn, tmp_path, github=app)


@pytest.mark.scale
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("github_server", ["plain"], indirect=True)
async def test_a_thousand_phases_of_fifty_features_have_a_thousand_issues(
    make: Make, github: FakeGitHub, watch: Watch
) -> None:
    for _ in range(50):
        await watch.submit(*["true"] * 20)
    github.fail("POST", "/issues", 502, done=True, times=3)
    github.fail("POST", "/issues", 403, message="a secondary rate limit", times=2)
    began = time.monotonic()
    async with running(make(), patience=3000):
        while await watch.all("select from phase_queue where status <> 'completed' limit 1"):
            await let_time_pass(watch, github, timedelta(seconds=30))
            await asyncio.sleep(1)
        await let_time_pass(watch, github, LATER)
        while await watch.all("select from pgcoord.errand limit 1"):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    print(f"\n1,000 phases with their issues in {time.monotonic() - began:.0f} s")  # noqa: T201
    numbers = await watch.all("select issue_number from phase_queue order by 1")
    assert [row["issue_number"] for row in numbers] == list(range(1, 1001))
    assert len(github.issues) == 1000
    assert {issue["state_reason"] for issue in github.issues} == {"completed"}
    assert {len(comments) for comments in github.comments.values()} == {1}
    assert len(github.labels) == 70
