"""Events of people on GitHub, by webhook: signed, recorded once, acted upon."""

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.cases import case
from support.database import Connection, add_feature, claim, start, statuses
from support.fake_github import LOGIN, REPOSITORY, TOKEN
from support.serving import Site, served

from pgcoord.configuration.model import GitHub

SECRET = "it was made for this test"


@asynccontextmanager
async def site_with(dsn: str, folder: Path, **settings: Any) -> AsyncIterator[Site]:
    github = GitHub(REPOSITORY, webhook_secret="GITHUB_SECRET", **settings)
    environment = {"GITHUB_SECRET": SECRET, "GITHUB_TOKEN": TOKEN}
    async with served(dsn, folder, leads=False, github=github, environment=environment) as site:
        yield site


@pytest.fixture
async def site(dsn: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with site_with(dsn, tmp_path) as site:
        yield site


@pytest.fixture
def running_phase(conn: Connection, epoch: int) -> str:
    """A phase that runs, with issue 7, which the coordinator has made."""
    add_feature(conn, {1: []})
    (queue_id,) = claim(conn, epoch)
    conn.execute(
        "insert into pgcoord.issue (queue_id, repository) values (%s, %s)", [queue_id, REPOSITORY]
    )
    conn.execute("select pgcoord_private.store_issue(key, 7, %s, true) from pgcoord.issue", [LOGIN])
    start(conn, epoch, queue_id)
    return queue_id


async def send(
    site: Site, name: str, event: dict[str, Any], delivery: str = "d-1", secret: str | None = SECRET
) -> httpx2.Response:
    body = json.dumps(event).encode()
    headers = {
        "content-type": "application/json",
        "x-github-event": name,
        "x-github-delivery": delivery,
    }
    if secret is not None:
        digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers["x-hub-signature-256"] = f"sha256={digest}"
    return await site.client.post("/webhooks/github", content=body, headers=headers)


def issue_event(action: str, sender: str = "octocat", number: int = 7) -> dict[str, Any]:
    return {
        "action": action,
        "issue": {"number": number, "title": "x", "state_reason": "not_planned"},
        "repository": {"full_name": REPOSITORY, "private": True},
        "sender": {"login": sender},
    }


def pull_event(
    action: str, *, merged: bool = False, ref: str = "topic", body: str = "", fork: bool = False
) -> dict[str, Any]:
    source = {"full_name": "stranger/work" if fork else REPOSITORY}
    return {
        "action": action,
        "pull_request": {
            "number": 31,
            "title": "It works",
            "body": body,
            "merged": merged,
            "head": {"ref": ref, "repo": source},
        },
        "repository": {"full_name": REPOSITORY},
        "sender": {"login": "octocat"},
    }


def told(conn: Connection) -> list[tuple[str, str, str]]:
    rows = conn.execute(
        "select kind, actor, reason from pgcoord.event where actor like '%(GitHub)'"
        " and kind <> 'phase_moved' order by id"
    ).fetchall()
    return [(row["kind"], row["actor"], row["reason"]) for row in rows]


async def test_an_issue_that_a_person_closes_is_recorded_without_effect(
    site: Site, conn: Connection, running_phase: str
) -> None:
    answer = await send(site, "issues", issue_event("closed"))
    assert answer.json() == {"result": "recorded", "phases": [running_phase]}
    assert told(conn) == [
        ("issue_closed", "octocat (GitHub)", "issue #7 was closed as not planned")
    ]
    assert statuses(conn) == {1: "running"}


async def test_a_delivery_that_comes_again_is_recorded_once(
    site: Site, conn: Connection, running_phase: str
) -> None:
    await send(site, "issues", issue_event("closed"))
    answer = await send(site, "issues", issue_event("closed"))
    assert answer.json() == {"result": "repeated", "phases": [running_phase]}
    assert len(told(conn)) == 1
    assert len(conn.execute("select from pgcoord.webhook_delivery").fetchall()) == 1


async def test_an_event_sent_again_under_another_delivery_changes_nothing(
    site: Site, conn: Connection, running_phase: str
) -> None:
    await send(site, "issues", issue_event("closed"), "d-1")
    answer = await send(site, "issues", issue_event("closed"), "d-2")
    assert answer.json() == {"result": "repeated", "phases": [running_phase]}
    assert len(told(conn)) == 1


async def test_changes_by_the_coordinator_itself_are_no_events(
    site: Site, conn: Connection, running_phase: str
) -> None:
    conn.execute("select pgcoord.complete_phase(%s)", [running_phase])
    answer = await send(site, "issues", issue_event("closed", LOGIN))
    assert answer.json()["result"] == "ignored"
    assert told(conn) == []
    await send(site, "issues", issue_event("reopened", "octocat"), "d-2")
    assert [kind for kind, _, _ in told(conn)] == ["issue_reopened"]


@pytest.mark.parametrize(
    ("settings", "event", "status"),
    [
        ({"on_issue_closed": "complete"}, "closed", "completed"),
        ({"on_issue_closed": "nothing"}, "closed", "running"),
        ({"on_issue_reopened": "retry"}, "reopened", "running"),
    ],
)
async def test_a_closed_issue_has_the_configured_effect(
    settings: dict[str, str],
    event: str,
    status: str,
    dsn: str,
    tmp_path: Path,
    conn: Connection,
    running_phase: str,
) -> None:
    async with site_with(dsn, tmp_path, **settings) as site:
        await send(site, "issues", issue_event(event))
    assert statuses(conn) == {1: status}


async def test_a_closed_issue_may_cancel_its_phase(
    dsn: str, tmp_path: Path, conn: Connection, running_phase: str
) -> None:
    async with site_with(dsn, tmp_path, on_issue_closed="cancel") as site:
        await send(site, "issues", issue_event("closed"))
    (attempt,) = conn.execute("select ending, ending_reason from pgcoord.attempt").fetchall()
    assert attempt == {"ending": "cancelled", "ending_reason": "issue #7 was closed as not planned"}


async def test_a_reopened_issue_may_retry_its_phase(
    dsn: str, tmp_path: Path, conn: Connection, running_phase: str
) -> None:
    conn.execute("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt")
    assert statuses(conn) == {1: "failed"}
    async with site_with(dsn, tmp_path, on_issue_reopened="retry") as site:
        await send(site, "issues", issue_event("reopened"))
    assert statuses(conn) == {1: "queued"}


@pytest.mark.parametrize(
    "named",
    [
        {"ref": "pgcoord/queue-1-1"},
        {"body": "This does queue-1-1."},
        {"body": "Fixes #7"},
    ],
)
async def test_a_merged_pull_request_is_recorded_and_may_complete_the_phase_that_the_text_names(
    named: dict[str, str], dsn: str, tmp_path: Path, conn: Connection, running_phase: str
) -> None:
    async with site_with(dsn, tmp_path, on_pull_request_merged="complete") as site:
        event = pull_event("closed", merged=True, fork=True, **named)
        answer = await send(site, "pull_request", event)
    assert answer.json() == {"result": "recorded", "phases": [running_phase]}
    assert told(conn) == [
        ("pull_request_merged", "octocat (GitHub)", "pull request #31 was merged")
    ]
    (phase,) = conn.execute("select status, pr_number from phase_queue").fetchall()
    assert phase == {"status": "completed", "pr_number": 31}


async def test_an_unmerged_pull_request_of_a_stranger_names_no_phase(
    site: Site, conn: Connection, running_phase: str
) -> None:
    event = pull_event("opened", ref=running_phase, fork=True)
    assert (await send(site, "pull_request", event)).json()["result"] == "ignored"
    event = pull_event("opened", ref=running_phase)
    assert (await send(site, "pull_request", event)).json()["result"] == "recorded"
    (phase,) = conn.execute("select status, pr_number from phase_queue").fetchall()
    assert phase == {"status": "running", "pr_number": 31}


OTHER_EVENTS: Any = [
    ("ping", {"zen": "Keep it logically awesome."}),
    ("issues", issue_event("labeled")),
    ("issues", issue_event("closed", number=8)),
    ("issues", {**issue_event("closed"), "repository": {"full_name": "another/one"}}),
    ("pull_request", pull_event("closed", ref="queue-1-1")),
    ("star", {"action": "created"}),
]


async def test_events_that_concern_no_phase_are_answered_and_not_stored(
    site: Site, conn: Connection, running_phase: str
) -> None:
    for name, event in OTHER_EVENTS:
        with case(name, event):
            answer = await send(site, name, event)
            assert (answer.status_code, answer.json()["result"]) == (200, "ignored")
            assert told(conn) == []
            assert conn.execute("select from pgcoord.webhook_delivery").fetchall() == []


async def test_an_event_that_our_secret_did_not_sign_is_not_taken(
    site: Site, conn: Connection, running_phase: str
) -> None:
    for secret in [None, "another secret than ours"]:
        with case(secret):
            answer = await send(site, "issues", issue_event("closed"), secret=secret)
            assert answer.status_code == 401
            assert SECRET not in answer.text
            assert told(conn) == []


async def test_without_a_secret_no_event_is_taken(dsn: str, tmp_path: Path) -> None:
    async with served(dsn, tmp_path, leads=False) as site:
        answer = await send(site, "issues", issue_event("closed"))
    assert answer.status_code == 404
    assert "webhook_secret" in answer.json()["reason"]


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"issue": {"number": "7"}}, "issue.number"),
        ({"sender": {}}, "sender.login"),
        ([], ""),
    ],
)
async def test_a_signed_event_of_another_shape_is_a_fault_that_is_named(
    event: Any, field: str, site: Site
) -> None:
    answer = await send(site, "issues", event)
    assert answer.status_code == 422
    assert answer.json()["faults"][0]["field"] == field


async def test_the_panel_links_to_the_issue_and_shows_its_events(
    site: Site, conn: Connection, running_phase: str
) -> None:
    await send(site, "issues", issue_event("closed"))
    page = (await site.client.get(f"/phases/{running_phase}")).text
    assert f'href="https://github.com/{REPOSITORY}/issues/7"' in page
    assert "issue #7 was closed as not planned" in page
    assert "octocat (GitHub)" in page
