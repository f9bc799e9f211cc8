"""POST /workflow-complete: what is taken, what is refused, and that a report counts once."""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook
from support.cases import case
from support.coordination import Gate, watching
from support.database import Connection, add_feature, add_phase, claim, start, statuses
from support.serving import SECRET, Site, served, signed

OTHER = "whsec_" + base64.b64encode(b"y" * 32).decode()


@pytest.fixture
def running(conn: Connection, epoch: int) -> str:
    """A phase that runs, followed by one that waits for it."""
    feature = add_feature(conn, {1: [], 2: [1]})
    [queue_id] = claim(conn, epoch)
    start(conn, epoch, queue_id)
    assert statuses(conn, feature) == {1: "running", 2: "queued"}
    return queue_id


def attempt(conn: Connection, queue_id: str, number: int = 1) -> dict[str, Any]:
    row = conn.execute(
        "select * from pgcoord.attempt where queue_id = %s and number = %s", [queue_id, number]
    ).fetchone()
    assert row
    return row


def deliveries(conn: Connection) -> list[tuple[str, str | None]]:
    rows = conn.execute("select result, code from pgcoord.webhook_delivery order by id").fetchall()
    return [(row["result"], row["code"]) for row in rows]


async def test_a_signed_report_completes_the_phase(
    site: Site, conn: Connection, running: str
) -> None:
    answer = await site.report({"queue_id": running, "status": "completed", "pr_number": 7})
    assert answer.status_code == 200
    assert answer.json() == {
        "queue_id": running,
        "feature_id": 1,
        "phase_number": 1,
        "adw_id": attempt(conn, running)["adw_id"],
        "outcome": "completed",
        "status": "completed",
        "repeated": False,
    }
    assert deliveries(conn) == [("taken", None)]
    row = conn.execute("select pr_number from phase_queue where phase_number = 1").fetchone()
    assert row == {"pr_number": 7}
    event = conn.execute("select actor from pgcoord.event where to_status = 'completed'").fetchone()
    assert event == {"actor": "TEST_SECRET (webhook)"}


async def test_a_report_and_the_claim_of_dependents_are_one_commit(
    dsn: str, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    async with served(dsn, tmp_path) as site, watching(dsn) as watch:
        await site.state.coordinator.leads.wait()
        await watch.note_transactions()
        await watch.submit(f"read _ < {gate.path}", ("true", [1]))
        await watch.until_statuses("running", "queued")
        answer = await site.report({"queue_id": "queue-1-1", "status": "completed"})
        assert answer.json()["status"] == "completed"
        await watch.until_statuses("completed", "completed")
        ended = await watch.transaction_of("queue-1-1", "completed")
        assert ended == await watch.transaction_of("queue-1-2", "ready")
        gate.open()


# 65,524 bytes, of which Postgres makes more by its spaces; and 150,000, of which it makes a third.
SMALL_MEMBERS = json.dumps({f"k{n}": n for n in range(5_211)}, separators=(",", ":"))
ESCAPED = json.dumps({"summary": "é" * 25_000})


@pytest.mark.parametrize(
    ("text", "refusal"),
    [(SMALL_MEMBERS, "the result has 74 kB of JSON as Postgres writes it"), (ESCAPED, None)],
)
async def test_a_result_is_taken_or_refused_alike_by_file_report_and_sql(
    dsn: str, tmp_path: Path, text: str, refusal: str | None
) -> None:
    assert len(SMALL_MEMBERS) < 65_536 < len(ESCAPED)
    file = tmp_path / "text"
    file.write_text(text)
    report = f"{sys.executable} -m pgcoord report completed --result {file}"
    async with served(dsn, tmp_path) as site, watching(dsn) as watch:
        await site.state.coordinator.leads.wait()
        await watch.submit(
            f"cp {file} $PGCOORD_RESULT_FILE",
            report,
            f"PGCOORD_REPORT_URL= {report} --patience 0",  # it leaves the report in its folder
            "true",
        )
        end = "failed" if refusal else "completed"
        rows = await watch.until_statuses(end, end, end, "completed")
        set_result = "select pgcoord.set_result('queue-1-4', %s::text::jsonb)"
        if refusal is None:
            await watch.one(set_result, text)
        else:
            with pytest.raises(psycopg.Error, match=refusal):
                await watch.one(set_result, text)
            for row in rows[:3]:
                assert refusal in row["error_message"]
        stored = await watch.all("select result from pgcoord.results")
    assert [each["result"] for each in stored] == ([] if refusal else [json.loads(text)] * 4)


async def test_a_repeated_report_is_answered_with_the_stored_outcome(
    site: Site, conn: Connection, running: str
) -> None:
    body = {"queue_id": running, "status": "completed"}
    first, second = await site.report(body), await site.report(body)
    assert second.status_code == 200
    assert second.json() == first.json() | {"repeated": True}
    assert deliveries(conn) == [("taken", None), ("repeated", None)]


async def test_another_outcome_is_refused_and_kept_in_the_history(
    site: Site, conn: Connection, running: str
) -> None:
    await site.report({"queue_id": running, "status": "completed"})
    answer = await site.report({"queue_id": running, "status": "failed"})
    assert answer.status_code == 409
    assert answer.json()["error"] == "refused"
    assert "has ended completed" in answer.json()["reason"]
    assert deliveries(conn) == [("taken", None), ("refused", "PC004")]
    event = conn.execute("select * from pgcoord.event where kind = 'report_refused'").fetchone()
    assert event
    assert event["queue_id"] == running


@pytest.mark.parametrize(
    "names",
    [
        {"queue_id": "queue-1-1"},
        {"feature_id": 1, "phase_number": 1},
        {"queue_id": "queue-1-1", "feature_id": 1, "phase_number": 1},
        {"queue_id": "queue-1-1", "error_message": None, "something": ["else"]},
    ],
)
async def test_a_phase_is_named_in_several_ways(
    site: Site, conn: Connection, running: str, names: dict[str, Any]
) -> None:
    answer = await site.report({"status": "completed", **names})
    assert (answer.status_code, statuses(conn)[1]) == (200, "completed")


async def test_an_adw_id_alone_names_the_phase(site: Site, conn: Connection, running: str) -> None:
    body = {"adw_id": attempt(conn, running)["adw_id"], "status": "completed"}
    assert (await site.report(body)).status_code == 200
    assert statuses(conn)[1] == "completed"


async def test_the_secret_of_the_attempt_signs_too(
    site: Site, conn: Connection, running: str
) -> None:
    row = attempt(conn, running)
    answer = await site.report({"queue_id": running, "status": "completed"}, row["secret"])
    assert answer.status_code == 200
    event = conn.execute("select actor from pgcoord.event where to_status = 'completed'").fetchone()
    assert event == {"actor": f"{row['adw_id']} (webhook)"}


async def test_the_secret_of_an_attempt_speaks_for_no_other_phase(
    site: Site, conn: Connection, epoch: int, running: str
) -> None:
    other = add_phase(conn, 1, 3)
    assert claim(conn, epoch) == [other]
    secret = attempt(conn, other)["secret"]
    answer = await site.report({"queue_id": running, "status": "completed"}, secret)
    assert answer.status_code == 401
    assert statuses(conn) == {1: "running", 2: "queued", 3: "ready"}


async def test_the_secret_of_a_given_up_attempt_ends_no_other_attempt(
    site: Site, conn: Connection, epoch: int, running: str
) -> None:
    stale = attempt(conn, running)["secret"]
    conn.execute("select pgcoord.give_up_attempt(id, 'lost', 'gone') from pgcoord.attempt")
    conn.execute("select pgcoord.retry_phase(%s)", [running])
    assert claim(conn, epoch) == [running]
    answer = await site.report({"queue_id": running, "status": "completed"}, stale)
    assert (answer.status_code, answer.json()["error"]) == (409, "stale_attempt")
    assert statuses(conn)[1] == "ready"


async def test_a_late_repeat_without_an_adw_id_does_not_end_the_next_attempt(
    site: Site, conn: Connection, epoch: int, running: str
) -> None:
    message = signed({"queue_id": running, "status": "failed"}, SECRET, message_id="msg_1")
    first = await site.client.post("/workflow-complete", **message)
    assert first.json()["outcome"] == "failed"
    conn.execute("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt")
    conn.execute("select pgcoord.retry_phase(%s)", [running])
    assert claim(conn, epoch) == [running]
    again = await site.client.post("/workflow-complete", **message)
    assert (again.status_code, again.json()["repeated"]) == (200, True)
    assert again.json()["adw_id"] == attempt(conn, running, 1)["adw_id"]
    assert attempt(conn, running, 2)["ending"] is None


def nested(shell: Any, levels: int) -> bytes:
    """A report with something in it that is nested in `shell` so many times."""
    before, after = json.dumps(shell).split("0")
    inner = f"{before * levels}1{after * levels}"
    return f'{{"queue_id": "queue-1-1", "status": "completed", "x": {inner}}}'.encode()


REFUSED_REPORTS: Any = [
    ({"queue_id": "queue-9-9", "status": "completed"}, 404, "queue_id queue-9-9"),
    ({"adw_id": "adw-none", "status": "completed"}, 404, "adw_id adw-none"),
    ({"feature_id": 9, "phase_number": 1, "status": "failed"}, 404, "feature_id 9"),
    ({"queue_id": "queue-1-2", "status": "completed"}, 409, "never started"),
    ({"queue_id": "queue-1-1", "adw_id": "adw-no", "status": "completed"}, 409, "adw-no"),
    ({"queue_id": "queue-1-1", "feature_id": 2, "status": "completed"}, 422, "contradicts"),
    ({"queue_id": "queue-1-1", "phase_number": 2, "status": "failed"}, 422, "contradicts"),
    ({"status": "completed"}, 422, "a report with no name names no phase"),
    (
        {"feature_id": 1, "status": "completed"},
        422,
        "a report with feature_id 1 names no phase",
    ),
    ({"queue_id": "queue-1-1"}, 422, "status: expected one of completed, failed; it is missi"),
    ({"queue_id": "queue-1-1", "status": "done"}, 422, "status: expected one of"),
    ({"queue_id": 1, "status": "completed"}, 422, "queue_id: expected text, not 1"),
    ({"queue_id": "a\0", "status": "completed"}, 422, "queue_id: expected text"),
    ({"queue_id": "\ud800", "status": "completed"}, 422, "queue_id: expected text"),
    ({"feature_id": 2**40, "status": "failed"}, 422, "feature_id: expected a whole number"),
    ([], 422, "the body: expected an object"),
    (nested({"a": 0}, 600), 422, "nothing that is nested more than 100 levels deep"),
    (nested([0], 600), 422, "nothing that is nested more than 100 levels deep"),
    (b"not json", 400, "not JSON"),
    (b"", 400, "not JSON"),
    (b"NaN", 400, "not JSON"),
    (b"[" * 60_000, 400, "not JSON"),
]


async def test_an_invalid_report_is_refused_with_the_reason(
    site: Site, conn: Connection, running: str
) -> None:
    for body, status, reason in REFUSED_REPORTS:
        with case(body, status, reason):
            answer = await site.report(body)
            assert answer.status_code == status, answer.text
            assert reason in answer.json()["reason"]
            assert statuses(conn) == {1: "running", 2: "queued"}


async def test_an_id_that_is_too_long_to_be_kept_is_no_lost_connection(
    site: Site, conn: Connection, running: str
) -> None:
    body = {"queue_id": running, "status": "completed"}
    request = signed(body, SECRET, message_id=secrets.token_hex(8_000))
    answer = await site.client.post("/workflow-complete", **request)
    assert answer.status_code == 422
    assert answer.json()["reason"].startswith("something in it is too long: index row")
    assert statuses(conn) == {1: "running", 2: "queued"}


def hub(body: bytes, secret: str = SECRET) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"x-hub-signature-256": f"sha256={digest}"}


async def test_a_signature_as_github_makes_them_is_accepted(
    site: Site, conn: Connection, running: str
) -> None:
    adw_id = attempt(conn, running)["adw_id"]
    body = json.dumps({"adw_id": adw_id, "status": "completed"}).encode()
    wrong = await site.report(body, None, **hub(body, OTHER))
    assert (wrong.status_code, statuses(conn)[1]) == (401, "running")
    assert (await site.report(body, None, **hub(body))).status_code == 200
    assert statuses(conn)[1] == "completed"


async def test_a_report_signed_as_github_does_names_its_attempt(
    site: Site, conn: Connection, running: str
) -> None:
    for name in ({}, {"adw_id": None}):
        body = json.dumps({"queue_id": running, "status": "failed", **name}).encode()
        answer = await site.report(body, None, **hub(body))
        assert answer.status_code == 422
        assert answer.json()["faults"][0]["field"] == "adw_id"
        assert (statuses(conn)[1], deliveries(conn)) == ("running", [])


async def test_a_report_sent_again_under_another_delivery_ends_no_later_attempt(
    site: Site, conn: Connection, epoch: int, running: str
) -> None:
    names = {"queue_id": running, "adw_id": attempt(conn, running)["adw_id"]}
    body = json.dumps({**names, "status": "failed"}).encode()
    for delivery in ("one", "two"):
        headers = {**hub(body), "x-github-delivery": delivery}
        answer = await site.report(body, None, **headers)
        assert (answer.status_code, answer.json()["outcome"]) == (200, "failed")
        if delivery == "one":
            conn.execute("select pgcoord_private.end_attempt(id, 1) from pgcoord.attempt")
            conn.execute("select pgcoord.retry_phase(%s)", [running])
            assert claim(conn, epoch) == [running]
            start(conn, epoch, running)
    assert statuses(conn)[1] == "running"
    assert attempt(conn, running, 2)["outcome"] is None


def signed_at(body: bytes, at: datetime) -> dict[str, str]:
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("msg_1", at, body.decode()),
    }


BODY = json.dumps({"queue_id": "queue-1-1", "status": "completed"}).encode()
NOW = datetime.now(UTC)
GOOD = signed_at(BODY, NOW)


INVALID_SIGNATURES: Any = [
    {},
    {"webhook-signature": ""},
    GOOD | {"webhook-signature": "garbage"},
    GOOD | {"webhook-signature": "v1"},
    GOOD | {"webhook-signature": "v1,a"},
    GOOD | {"webhook-signature": "v1,é"},
    GOOD | {"webhook-signature": "v2" + GOOD["webhook-signature"][2:]},
    GOOD | {"webhook-id": "msg_2"},
    GOOD | {"webhook-timestamp": "nan"},
    GOOD | {"webhook-timestamp": "1e400"},
    GOOD | {"webhook-timestamp": str(int(NOW.timestamp()) + 1)},
    signed_at(BODY, NOW - timedelta(hours=1)),
    signed_at(BODY, NOW + timedelta(hours=1)),
    signed_at(BODY + b" ", NOW),
    {"x-hub-signature-256": "sha256=é"},
    {"x-hub-signature-256": "sha1=00"},
]


async def test_a_signature_that_is_not_valid_is_401(
    site: Site, conn: Connection, running: str
) -> None:
    for headers in INVALID_SIGNATURES:
        with case(headers):
            raw = latin({"content-type": "application/json", **headers})
            answer = await site.client.post("/workflow-complete", content=BODY, headers=raw)
            assert answer.status_code == 401
            assert answer.json()["error"] == "not_signed"
            assert statuses(conn)[1] == "running"
            assert deliveries(conn) == []


async def test_a_flood_of_refusals_is_a_line_in_the_log_for_each_reason(
    site: Site, running: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"queue_id": running, "status": "completed"}
    for path in ("/workflow-complete", "/attempts/1/begin"):
        for number in range(20):
            headers = {"webhook-id": f"m{number}", "webhook-signature": "v1,AAAA"}
            answer = await site.client.post(path, json=body, headers=headers)
            assert answer.status_code == 401
    for number in range(20):  # a different time, or attempt, each
        old = {"webhook-id": "m", "webhook-timestamp": str(number), "webhook-signature": "v1,AAAA"}
        answer = await site.client.post("/attempts/1/begin", json=body, headers=old)
        assert answer.status_code == 401
        answer = await site.client.post(f"/attempts/{number + 2}/begin", json=body)
        assert answer.status_code == 404
    report, wrong, dated, unknown = [
        each.getMessage() for each in caplog.records if each.levelname == "WARNING"
    ]
    assert report.startswith("a report was refused (from 127.0.0.1): ")
    assert wrong.startswith("the job of attempt 1 is refused to begin (from 127.0.0.1): ")
    assert "days, " in dated
    assert "behind this server's" in dated
    assert unknown.endswith("there is no attempt 2")


async def test_one_of_several_signatures_is_enough(
    site: Site, conn: Connection, running: str
) -> None:
    other = Webhook(OTHER).sign("msg_1", NOW, BODY.decode())
    both = signed_at(BODY, datetime.now(UTC))
    both["webhook-signature"] = f"{other} {both['webhook-signature']}"
    assert (await site.report(BODY, None, **both)).status_code == 200


async def test_a_body_of_more_than_256_kib_is_refused_before_its_end(
    site: Site, running: str
) -> None:
    async def chunks() -> Any:
        for _ in range(50):
            yield b" " * 10_000

    headers = {"content-type": "application/json"}
    answer = await site.client.post("/workflow-complete", content=chunks(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"] == "too_large"
    fits = {"queue_id": running, "status": "failed", "error_message": "x" * 255_000}
    assert (await site.report(fits)).status_code == 200
    long = {**fits, "error_message": "x" * 263_000}
    assert (await site.report(long)).status_code == 413


async def test_another_kind_of_body_is_415(site: Site, running: str) -> None:
    for kind in ["text/plain", "application/x-www-form-urlencoded", ""]:
        with case(kind):
            answer = await site.report(BODY, None, **{"content-type": kind})
            assert (answer.status_code, answer.json()["error"]) == (415, "unsupported_media_type")


async def test_unsigned_reports_are_taken_only_when_asked_for(
    dsn: str, tmp_path: Path, conn: Connection, running: str
) -> None:
    async with served(dsn, tmp_path, leads=False, unsigned_webhooks=True) as site:
        wrong = await site.report(BODY, OTHER)
        assert (wrong.status_code, statuses(conn)[1]) == (401, "running")
        assert (await site.report(BODY, None)).status_code == 200
    assert statuses(conn)[1] == "completed"


async def test_reports_at_once_count_once(site: Site, conn: Connection, running: str) -> None:
    answers = await asyncio.gather(
        *(site.report({"queue_id": running, "status": "completed"}) for _ in range(20))
    )
    assert [answer.status_code for answer in answers] == [200] * 20
    assert sorted(answer.json()["repeated"] for answer in answers) == [False] + [True] * 19
    moves = conn.execute("select * from pgcoord.event where to_status = 'completed'").fetchall()
    assert len(moves) == 1


def latin(headers: dict[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode("latin-1") for name, value in headers.items()}


HEADER_NAMES = st.sampled_from(
    ["webhook-id", "webhook-timestamp", "webhook-signature", "x-hub-signature-256", "content-type"]
)
HEADER_VALUES = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=60),
    st.sampled_from(
        ["v1,", "v1,AAAA", "v1, v1,=", "0", "-1", "1e9", "sha256=", "application/json"]
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["status", "queue_id", "adw_id", "feature_id", "phase_number", "pr_number", "x"]
            ),
            st.one_of(inner, st.sampled_from(["completed", "queue-1-1", 1])),
        ),
    ),
    max_leaves=8,
)


async def test_no_header_and_no_body_makes_a_fault_or_an_unsigned_change(
    site: Site, conn: Connection, running: str
) -> None:
    loop = asyncio.get_running_loop()

    def send(content: bytes, headers: dict[bytes, bytes]) -> int:
        request = site.client.post("/workflow-complete", content=content, headers=headers)
        return asyncio.run_coroutine_threadsafe(request, loop).result().status_code

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())),
        st.dictionaries(HEADER_NAMES, HEADER_VALUES),
    )
    def unsigned(content: bytes, headers: dict[str, str]) -> None:
        assert send(content, latin({"content-type": "application/json", **headers})) in (
            400,
            401,
            415,
        )

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(JSON.filter(lambda value: not isinstance(value, dict) or "queue-1-1" not in str(value)))
    def signed_well(value: object) -> None:
        message = signed(value, SECRET)
        assert send(message["content"], latin(message["headers"])) in (400, 404, 409, 422)

    await asyncio.to_thread(unsigned)
    await asyncio.to_thread(signed_well)
    assert statuses(conn) == {1: "running", 2: "queued"}
