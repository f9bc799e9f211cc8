"""The REST API: what can be asked for over HTTP is what the functions in the database do."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from psycopg.types.json import Jsonb
from support import PATIENCE
from support.cases import case
from support.coordination import watching
from support.database import Connection, add_feature, claim, start, statuses
from support.serving import Site, served

API = "/api/v1"


@pytest.fixture
async def site(dsn: str, tmp_path: Path) -> Any:
    async with served(dsn, tmp_path, leads=False, patience=1500) as site:
        yield site


async def ask(site: Site, method: str, path: str, body: object = None, **headers: str) -> Any:
    """Ask for what is to succeed, and return the answer's JSON."""
    arguments: dict[str, Any] = {"headers": headers}
    if body is not None:
        arguments["json"] = body
    answer = await site.client.request(method, API + path, **arguments)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


PLAN = {
    "title": "Live updates",
    "description": "Show changes as they happen.",
    "tags": ["panel"],
    "phases": [
        {"phase_number": 1, "title": "Tables", "prompt_content": "Add the tables."},
        {"phase_number": 2, "title": "View", "depends_on_phases": [1], "priority": 10},
    ],
}


async def test_a_feature_is_stored_then_executed(site: Site, conn: Connection) -> None:
    created = await site.client.post(f"{API}/planned-features", json=PLAN)
    assert created.status_code == 201
    feature = created.json()
    assert created.headers["location"] == f"{API}/planned-features/{feature['id']}"
    assert (feature["status"], feature["total_phases"]) == ("planned", 0)
    assert feature["phases"] == PLAN["phases"]
    assert statuses(conn) == {}
    path = f"/planned-features/{feature['id']}/execute"
    done = await ask(site, "POST", path)
    assert (done["queued"], done["message"]) == (2, "2 phases are queued")
    one = PLAN | {"phases": PLAN["phases"][:1]}
    small = (await site.client.post(f"{API}/planned-features", json=one)).json()
    done_small = await ask(site, "POST", f"/planned-features/{small['id']}/execute")
    assert done_small["message"] == "1 phase is queued"
    assert [phase["title"] for phase in done["feature"]["phases"]] == ["Tables", "View"]
    assert [phase["waiting_for"] for phase in done["feature"]["phases"]] == [
        "no coordinator runs",
        "waits for phase 1, queued",
    ]
    again = await ask(site, "POST", path)
    assert (again["queued"], again["message"]) == (0, "its phases were queued before")
    assert statuses(conn) == {1: "queued", 2: "queued"}


async def test_the_object_of_a_feature_can_be_sent_back(site: Site, conn: Connection) -> None:
    first = await ask(site, "POST", "/planned-features?execute=true", PLAN)
    shown = await ask(site, "GET", f"/planned-features/{first['id']}")
    second = await ask(site, "POST", "/planned-features?execute=true", shown)
    rows = conn.execute(
        "select phase_data, depends_on_phases, priority from phase_queue"
        " where feature_id = any(%s) order by phase_number, feature_id",
        [[first["id"], second["id"]]],
    ).fetchall()
    assert rows[0] == rows[1]
    assert rows[2] == rows[3]


async def test_a_change_of_a_feature_needs_the_version_that_was_read(site: Site) -> None:
    created = await site.client.post(f"{API}/planned-features", json=PLAN)
    path, seen = created.headers["location"], created.headers["etag"]
    changed = await site.client.patch(path, json={"title": "Other"}, headers={"if-match": seen})
    assert (changed.status_code, changed.json()["title"]) == (200, "Other")
    assert changed.json()["description"] == PLAN["description"]
    late = await site.client.patch(path, json={"title": "Third"}, headers={"if-match": seen})
    assert (late.status_code, late.json()["error"]) == (412, "changed_meanwhile")
    blind = await site.client.patch(path, json={"description": None, "tags": []})
    assert blind.json()["description"] is None
    assert blind.headers["etag"] not in (seen, changed.headers["etag"])
    assert (await site.client.get(path)).headers["etag"] == blind.headers["etag"]


async def test_columns_win_over_keys_of_phase_data(site: Site, conn: Connection) -> None:
    lies = {"status": "completed", "queue_id": "queue-9-9", "phase_number": 7, "feature_id": 9}
    feature = add_feature(conn, {1: []}, phase_data=Jsonb({**lies, "title": "Step"}))
    (phase,) = (await site.client.get(f"{API}/planned-features/{feature}")).json()["phases"]
    true = {"status": "queued", "queue_id": f"queue-{feature}-1", "phase_number": 1}
    assert phase.items() >= {**true, "title": "Step"}.items()


async def test_the_plan_of_a_queued_feature_stays(site: Site) -> None:
    feature = await ask(site, "POST", "/planned-features?execute=true", PLAN)
    path = f"{API}/planned-features/{feature['id']}"
    refused = await site.client.patch(path, json={"phases": []})
    assert (refused.status_code, refused.json()["error"]) == (409, "refused")
    assert (await site.client.patch(path, json={"title": "Other"})).status_code == 200


async def test_the_queue_is_a_bare_list_with_filters_and_parts(
    site: Site, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: [1], 3: [1]})
    add_feature(conn, {1: []}, priority=10)
    assert claim(conn, epoch) == ["queue-2-1", "queue-1-1"]
    start(conn, epoch, "queue-2-1")
    rows = await ask(site, "GET", "/queue")
    assert [row["queue_id"] for row in rows] == [
        "queue-1-1",
        "queue-1-2",
        "queue-1-3",
        "queue-2-1",
    ]
    spec = conn.execute("select * from phase_queue limit 0").description
    assert spec
    assert {column.name for column in spec[:16]} < set(rows[0])
    assert rows[1]["waiting_for"] == "waits for phase 1, ready"

    async def ids(query: str) -> list[str]:
        return [row["queue_id"] for row in await ask(site, "GET", f"/queue?{query}")]

    assert await ids("status=running") == ["queue-2-1"]
    assert await ids("status=running,ready&order=line") == ["queue-2-1", "queue-1-1"]
    assert await ids("feature_id=2") == ["queue-2-1"]
    assert await ids("slot=2") == ["queue-1-1"]
    assert await ids("status=failed") == []
    first = await site.client.get(f"{API}/queue?limit=3&status=queued,ready,running")
    assert len(first.json()) == 3
    following = first.links["next"]["url"]
    assert [row["queue_id"] for row in (await site.client.get(following)).json()] == ["queue-2-1"]


async def test_features_are_listed_by_figures_derived_from_their_phases(
    site: Site, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: []})
    add_feature(conn, {})
    claim(conn, epoch)
    assert [row["id"] for row in await ask(site, "GET", "/planned-features?order=newest")] == [2, 1]
    [started] = await ask(site, "GET", "/planned-features?status=in_progress")
    assert (started["id"], started["phases_running"]) == (1, 1)


async def test_phases_are_steered(site: Site, conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: [], 2: [1], 3: []})
    skipped = await ask(site, "POST", "/queue/queue-1-1/skip", {"reason": "was done"})
    assert skipped["status"] == "completed"
    cancelled = await ask(site, "POST", "/queue/queue-1-2/cancel", {"reason": "not now"})
    assert cancelled["status"] == "cancelled"
    assert (await ask(site, "POST", "/queue/queue-1-2/retry"))["status"] == "queued"
    assert (await ask(site, "POST", "/queue/queue-1-3/priority", {"priority": 5}))["priority"] == 5
    assert (await ask(site, "GET", "/queue/queue-1-3"))["queue_id"] == "queue-1-3"
    [first, *_] = await ask(site, "GET", "/queue/queue-1-2/why")
    assert (first["kind"], first["words"]) == ("slot", "is 2nd in line; a slot is free")
    events = conn.execute(
        "select actor, reason from pgcoord.event where kind = 'phase_moved' order by id"
    ).fetchall()
    assert events == [
        {"actor": "http (127.0.0.1)", "reason": "was done"},
        {"actor": "http (127.0.0.1)", "reason": "not now"},
        {"actor": "http (127.0.0.1)", "reason": None},
    ]


async def test_all_and_one_feature_are_paused_and_resumed(site: Site, conn: Connection) -> None:
    add_feature(conn, {1: []})
    assert (await ask(site, "POST", "/queue/pause", {"reason": "lunch"}))["paused"] is True
    assert (await ask(site, "POST", "/queue/resume"))["paused"] is False
    paused = await ask(site, "POST", "/planned-features/1/pause", {"reason": "later"})
    assert paused["paused_reason"] == "later"
    assert (await ask(site, "POST", "/planned-features/1/resume"))["paused_at"] is None
    assert (await ask(site, "POST", "/planned-features/1/cancel"))["status"] == "cancelled"
    assert statuses(conn) == {1: "cancelled"}


async def test_slots_are_shown_and_set(site: Site, conn: Connection, epoch: int) -> None:
    add_feature(conn, {1: [], 2: []})
    claim(conn, epoch)
    shown = await ask(site, "GET", "/slots")
    assert (shown["slots"], shown["held"], shown["draining"]) == (3, 2, 0)
    lowered = await ask(site, "PUT", "/slots", {"slots": 1})
    assert (lowered["slots"], lowered["held"], lowered["draining"]) == (1, 2, 1)


async def test_the_log_of_an_attempt_is_sent_whole_or_in_part(dsn: str, tmp_path: Path) -> None:
    async with served(dsn, tmp_path) as site, watching(dsn) as watch:
        await watch.submit("printf 0123456789")
        await watch.until_statuses("completed")
        path = f"{API}/queue/queue-1-1/log"
        whole = await site.client.get(path)
        assert (whole.status_code, whole.text) == (200, "0123456789")
        assert whole.headers["content-type"] == "text/plain; charset=utf-8"
        assert (await site.client.get(path, headers={"range": "bytes=-3"})).text == "789"
        missing = await site.client.get(f"{path}?attempt=2")
        assert (missing.status_code, missing.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize("path", [f"{API}/queue/queue-1-1/log", "/phases/queue-1-1/log"])
async def test_a_log_that_grows_during_the_answer_arrives_to_its_end(
    dsn: str, conn: Connection, tmp_path: Path, path: str
) -> None:
    async with served(dsn, tmp_path) as site, watching(dsn) as watch:
        await watch.submit("true")
        await watch.until_statuses("completed")
        row = conn.execute("select folder from pgcoord.attempt").fetchone()
        assert row
        log = anyio.Path(row["folder"], "log")
        await log.write_bytes(bytes(50_000_000))  # more than lies between server and client
        last = b""
        async with site.client.stream("GET", path) as answer:
            async with await log.open("ab") as more:
                await more.write(b"the end")
            async for chunk in answer.aiter_raw():
                last = chunk
        assert last.endswith(b"the end")


REFUSALS: Any = [
    ("GET", "/planned-features/9", None, 404, "there is no feature 9"),
    ("GET", "/planned-features/x", None, 404, "there is no feature x"),
    ("GET", "/planned-features/99999999999", None, 404, "there is no feature 99999999999"),
    ("GET", "/queue/none", None, 404, "there is no phase none"),
    ("GET", "/queue/%00", None, 404, "there is no phase \ufffd"),
    (
        "POST",
        "/queue/queue-1-1/again",
        {"reason": "x"},
        422,
        "reason: expected nothing; it is unknown",
    ),
    ("POST", "/planned-features/1/execute", [1], 422, "expected an object"),
    ("GET", "/nothing", None, 404, "there is nothing at /api/v1/nothing"),
    ("DELETE", "/queue", None, 405, "there is no DELETE for /api/v1/queue"),
    ("GET", "/queue?statsu=running", None, 422, "statsu: expected one of the parameters"),
    ("GET", "/queue?status=ready&status=running", None, 422, "status: expected given once"),
    ("GET", "/queue?status=done", None, 422, "status[0]: expected one of queued, ready"),
    ("GET", "/queue?limit=0", None, 422, "limit: expected a whole number from 1 to 10000"),
    ("POST", "/queue/queue-1-1/priority", {}, 422, "priority: expected a whole number from 0"),
    ("POST", "/queue/queue-1-1/priority", {"priority": "high"}, 422, "not 'high'"),
    ("POST", "/queue/queue-1-1/retry", None, 409, "phase queue-1-1 is queued"),
    ("POST", "/queue/queue-1-1/skip", {"why": "x"}, 422, "why: expected one of reason"),
    ("PUT", "/slots", {"slots": 9999}, 422, "slots: expected a whole number from 0 to 1000"),
    ("POST", "/planned-features", {"title": " "}, 422, "title: expected text that is not"),
    ("POST", "/planned-features", {"title": "a\0"}, 422, "title: expected text"),
    (
        "POST",
        "/planned-features",
        {"title": "a", "phases": [{"phase_number": 1}, {"phase_number": "2"}]},
        422,
        "phases[1].phase_number: expected a whole number from 1",
    ),
    (
        "POST",
        "/planned-features",
        {"title": "a", "phases": [{"phase_number": 1, "prompt": "Add the tables."}]},
        422,
        "phases[0].prompt: expected one of phase_number, title, prompt_content",
    ),
    (
        "POST",
        "/planned-features?execute=true",
        {"title": "a", "phases": [{"phase_number": 1, "depends_on_phases": [1]}]},
        422,
        "itself",
    ),
]


async def test_a_refused_request_is_answered_with_the_reason(site: Site, conn: Connection) -> None:
    add_feature(conn, {1: []})
    for method, path, body, status, words in REFUSALS:
        with case(method, path, body, status, words):
            answer = await site.client.request(
                method, API + path, **({} if body is None else {"json": body})
            )
            assert answer.status_code == status, answer.text
            assert words in answer.json()["reason"]
            assert statuses(conn) == {1: "queued"}


async def test_a_schedule_is_made_and_shown(site: Site, conn: Connection) -> None:
    feature = {"title": "a", "phases": [{"phase_number": 1, "prompt_content": "x"}]}
    body = {"name": "nightly", "cron": "0 3 * * *", "feature": feature, "timezone": "UTC"}
    made = await site.client.post(f"{API}/schedules", json=body)
    assert (made.status_code, made.headers["location"]) == (201, "/api/v1/schedules/nightly")
    again = await site.client.post(f"{API}/schedules", json=body)
    assert (again.status_code, "already" in again.text) == (409, True)
    wrong = await site.client.post(f"{API}/schedules", json={**body, "name": "b", "cron": "x"})
    assert (wrong.status_code, "not five" in wrong.json()["reason"]) == (422, True)
    shown = await site.client.get(f"{API}/schedules/nightly")
    assert (await site.client.get(f"{API}/schedules")).json() == [shown.json()]
    assert shown.json()["title"] == "a"
    # The panel: on the overview, and with its next times on a page of its own.
    conn.execute("select pgcoord.run_schedule('nightly')")
    overview = (await site.client.get("/")).text
    assert '<a href="/schedules/nightly">nightly</a>' in overview
    page = (await site.client.get("/schedules/nightly")).text
    assert page.count("03:00 UTC</li>") == 5
    assert "asked for by" in page


async def test_every_fault_of_a_body_is_named(site: Site) -> None:
    body = {"title": 1, "priority": 500, "phases": [{"title": 3}]}
    answer = await site.client.post(f"{API}/planned-features", json=body)
    assert answer.status_code == 422
    assert [(fault["field"], fault["given"]) for fault in answer.json()["faults"]] == [
        ("title", 1),
        ("priority", 500),
        ("phases[0].phase_number", None),
        ("phases[0].title", 3),
    ]


NO_JSON: Any = [
    (b"{", "application/json", 400),
    (b"{}", "text/plain", 415),
    (b" " * 4_200_000, "application/json", 413),
]


async def test_a_body_that_is_no_json_is_refused(site: Site) -> None:
    for content, kind, status in NO_JSON:
        with case(content, kind, status):
            answer = await site.client.post(
                f"{API}/planned-features", content=content, headers={"content-type": kind}
            )
            assert answer.status_code == status
            assert set(answer.json()) >= {"error", "reason"}


async def test_paths_answer_with_a_slash_at_their_end_too(site: Site) -> None:
    for path in ("/api/v1/queue/", "/healthz/", "/api/v1/planned-features/"):
        assert (await site.client.get(path)).status_code == 200


# That the phases of a plan depend on each other in circles, no schema can tell; nor what a time is.
SCHEMATHESIS = """
[[operations]]
include-operation-id = "create_feature"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-operation-id = "create_schedule"
checks.positive_data_acceptance.enabled = false
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("stages", "mode", "examples"),
    [
        ("fuzzing", "positive", 2),
        pytest.param("examples,coverage,fuzzing", "all", 10, marks=pytest.mark.scale),
    ],
)
async def test_the_api_keeps_its_openapi_description(
    site: Site, conn: Connection, epoch: int, tmp_path: Path, stages: str, mode: str, examples: int
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    program = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        f"--config-file={tmp_path / 'schemathesis.toml'}",
        "run",
        f"{site.url}/openapi.json",
        f"--phases={stages}",
        f"--mode={mode}",
        f"--max-examples={examples}",
        "--generation-allow-x00=false",  # no text of Postgres holds it
        "--suppress-health-check=too_slow",  # which judges the machine
        f"--request-timeout={PATIENCE}",
        "--seed=1",
        "--exclude-checks=unsupported_method,ignored_auth,missing_required_header",
        "--generation-database=none",
        "--no-color",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await program.communicate()
    assert program.returncode == 0, said.decode()
