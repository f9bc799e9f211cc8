"""POST /attempts/ID/begin and /exit: what a job says is believed when its attempt signed it."""

from typing import Any

import pytest
from psycopg.types.json import Jsonb
from support.cases import case
from support.database import (
    Connection,
    add_feature,
    add_phase,
    attempt_of,
    claim,
    one,
    statuses,
)
from support.serving import SECRET, Site, signed


@pytest.fixture
def attempt(conn: Connection, epoch: int) -> dict[str, Any]:
    """The attempt of a phase whose job was submitted; another phase waits for it."""
    feature = add_feature(conn, {})
    queue_id = add_phase(conn, feature, 1, phase_data=Jsonb({"prompt_content": "Do it"}))
    add_phase(conn, feature, 2, [1])
    assert claim(conn, epoch) == [queue_id]
    attempt = attempt_of(conn, queue_id)
    conn.execute("select pgcoord_private.submit_attempt(%s, %s)", [epoch, attempt["id"]])
    return attempt


async def say(
    site: Site, attempt: dict[str, Any], act: str, secret: str | None = None, **more: Any
) -> Any:
    number = attempt["id"]
    body = {"act": act, "attempt": number, "copy": "a" * 32, **more}
    path = f"/attempts/{number}/{act}"
    return await site.client.post(path, **signed(body, secret or attempt["secret"]))


async def test_a_job_begins_with_its_prompt_and_ends_by_any_coordinator(
    site: Site, conn: Connection, attempt: dict[str, Any]
) -> None:
    for _ in range(2):  # as if the first answer had been lost
        answer = await say(site, attempt, "begin", job="17", node="node1", prompt=True)
        assert answer.json() == {"attempt": attempt["id"], "prompt": "Do it", "inputs": {}}
    assert statuses(conn) == {1: "running", 2: "queued"}
    for _ in range(2):
        answer = await say(site, attempt, "exit", exit_code=0, log_tail="done")
        assert (answer.status_code, answer.json()) == (200, {"attempt": attempt["id"]})
    assert statuses(conn)[1] == "completed"
    assert one(conn, "select eligible_at from phase_queue where phase_number = 2")["eligible_at"]


async def test_a_forged_or_malformed_request_or_a_second_copy_begins_no_job(
    site: Site, conn: Connection, attempt: dict[str, Any]
) -> None:
    other = {"id": 2**70, "secret": SECRET}
    cases: list[tuple[int, str, dict[str, Any], str, dict[str, Any]]] = [
        (401, "not made with the secret", attempt | {"secret": SECRET}, "begin", {}),
        (422, "attempt", attempt, "begin", {"attempt": attempt["id"] + 1}),
        (422, "act", attempt, "begin", {"act": "exit"}),
        (422, "exit_code", attempt, "exit", {"exit_code": -9}),
        (404, "no attempt", other, "begin", {}),
    ]
    for status, words, given, act, more in cases:
        with case(status, words):
            body = {"act": act, "attempt": given["id"], "copy": "a" * 32, **more}
            path = f"/attempts/{given['id']}/{act}"
            answer = await site.client.post(path, **signed(body, given["secret"]))
            assert answer.status_code == status, answer.text
            assert words in answer.text
    unsigned = await site.client.post(f"/attempts/{attempt['id']}/begin", json={})
    assert unsigned.status_code == 401
    assert statuses(conn)[1] == "ready"
    assert (await say(site, attempt, "begin", node="node1")).status_code == 200
    answer = await say(site, attempt, "begin", copy="b" * 32)
    assert answer.status_code == 409
    assert "another copy of its job began on node1" in answer.json()["reason"]
    rows = conn.execute("select reason from pgcoord.event where kind = 'begin_refused'").fetchall()
    assert [row["reason"].split(": ")[0] for row in rows] == [
        "somebody asked to begin its job, and has not its secret",
        f"attempt {attempt['id']} is not begun by job",
    ]
