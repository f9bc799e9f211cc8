"""The HTTP server as a whole: access, health, metrics, start and stop."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg.types.json import Jsonb
from psycopg_pool import TooManyRequests
from starlette.requests import Request
from support import PATIENCE
from support.cases import case
from support.database import Connection, add_feature, claim, start, statuses
from support.serving import Site, served
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from pgcoord.configuration.model import Server
from pgcoord.errors import CannotStart, InvalidConfiguration
from pgcoord.http.access import read_access
from pgcoord.http.errors import answer_error

TOKEN, READ_TOKEN = "t" * 32, "r" * 32
TOKENS = {"PGCOORD_TOKEN": TOKEN, "PGCOORD_READ_TOKEN": READ_TOKEN}
STEER = {"authorization": f"Bearer {TOKEN}"}
READ = {"authorization": f"Bearer {READ_TOKEN}"}


@pytest.fixture
async def locked(dsn: str, tmp_path: Path) -> Any:
    """A site that asks for a token."""
    async with served(dsn, tmp_path, leads=False, environment=TOKENS) as site:
        yield site


async def test_without_a_token_nobody_gets_in(locked: Site, conn: Connection) -> None:
    add_feature(conn, {1: []})
    for path in ("/api/v1/queue", "/events", "/metrics", "/openapi.json", "/"):
        assert (await locked.client.get(path)).status_code == 401, path
        wrong = {"authorization": f"Bearer {TOKEN}x"}
        refused = await locked.client.get(path, headers=wrong)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), path
        assert "not the token" in refused.json()["reason"]
    assert (await locked.client.post("/api/v1/queue/queue-1-1/skip")).status_code == 401
    for path in ("/healthz", "/login"):
        assert (await locked.client.get(path)).status_code == 200, path
    assert (await locked.report({"queue_id": "queue-9-9", "status": "failed"})).status_code == 404
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"{locked.socket_url}/ws/queue")
    assert caught.value.response.status_code == 401
    assert statuses(conn) == {1: "queued"}


async def test_the_page_of_a_feature_shows_its_costs(
    site: Site, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    conn.execute(
        """select pgcoord.set_result('queue-1-1', '{"cost_usd": 0.5, "tokens_in": 2000}')"""
    )
    await site.client.post("/features/1/budget", data={"max_cost_usd": "$2"})
    page = (await site.client.get("/features/1")).text
    assert "$0.50 of $2.00<small>2,000 tokens</small>" in page
    await site.client.post("/features/1/budget", data={"max_cost_usd": ""})
    assert " of $2.00" not in (await site.client.get("/features/1")).text
    wrong = await site.client.post("/features/1/budget", data={"max_cost_usd": "much"})
    assert (wrong.status_code, "&#39;much&#39; is not an amount" in wrong.text) == (422, True)


async def test_the_page_of_a_phase_shows_its_result(
    site: Site, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: []})
    claim(conn, epoch)
    result = {
        "summary": "did <it>",
        "branch": "pgcoord/queue-1-1",
        "commit": "0123456789abcdef",
        "url": "https://example.org/7",
        "cost_usd": 0.5,
        "tokens_in": 2000,
    }
    conn.execute("select pgcoord.set_result('queue-1-1', %s)", [Jsonb(result)])
    page = (await site.client.get("/phases/queue-1-1")).text
    for shown in (
        "<dt>Summary</dt><dd>did &lt;it&gt;</dd>",
        'pgcoord/queue-1-1 <span class="faint">0123456789ab</span>',
        '<a href="https://example.org/7" rel="noreferrer">',
        "<dt>Cost</dt><dd>0.50 USD</dd>",
        "<dt>Tokens</dt><dd>2,000 read, 0 written</dd>",
    ):
        assert shown in page, shown
    conn.execute("""select pgcoord.set_result('queue-1-1', '{"url": "javascript:alert()"}')""")
    assert "javascript:alert" not in (await site.client.get("/phases/queue-1-1")).text


async def test_a_token_for_reading_steers_nothing(locked: Site, conn: Connection) -> None:
    add_feature(conn, {1: []})
    assert (await locked.client.get("/api/v1/queue", headers=READ)).status_code == 200
    async with connect(f"{locked.socket_url}/ws/queue", additional_headers=READ) as client:
        assert json.loads(await client.recv())["type"] == "snapshot"
    skip = "/api/v1/queue/queue-1-1/skip"
    refused = await locked.client.post(skip, headers=READ)
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")
    assert statuses(conn) == {1: "queued"}
    assert (await locked.client.post(skip, headers=STEER)).status_code == 200


async def test_people_log_in_and_get_a_cookie(locked: Site, conn: Connection) -> None:
    add_feature(conn, {1: []})
    page = await locked.client.get("/", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=/")
    found = await locked.client.get("/?q=a&show=failed", headers={"accept": "text/html"})
    assert httpx2.URL(found.headers["location"]).params["next"] == "/?q=a&show=failed"
    form = {"token": TOKEN, "name": "Ann", "next": "/features/1"}
    done = await locked.client.post("/login", data=form)
    assert (done.status_code, done.headers["location"]) == (303, "/features/1")
    given = done.headers["set-cookie"]
    assert "HttpOnly" in given
    assert "SameSite=strict" in given
    assert TOKEN not in given
    skipped = await locked.client.post("/api/v1/queue/queue-1-1/skip")  # the client sends it back
    assert skipped.status_code == 200
    event = conn.execute("select actor from pgcoord.event where kind = 'phase_moved'").fetchone()
    assert event == {"actor": "Ann (panel)"}
    name = "pgcoord_session"
    value = locked.client.cookies[name]
    async with httpx2.AsyncClient(timeout=PATIENCE) as other:
        for forged in (value[:-1], value.replace("steer", "read"), "steer.9999999999.QQ.00", "é"):
            cookie = f"{name}={forged}".encode("latin-1")
            path = f"{locked.url}/api/v1/queue"
            answer = await other.get(path, headers={b"cookie": cookie})
            assert answer.status_code == 401, forged
    out = await locked.client.post("/logout")
    assert 'pgcoord_session=""' in out.headers["set-cookie"]
    async with httpx2.AsyncClient(cookies={name: value}, timeout=PATIENCE) as copied:
        refused = await copied.get(f"{locked.url}/api/v1/queue")
        assert refused.status_code == 401, "a copy of the cookie outlives the log-out"
    await locked.client.post("/login", data=form)
    assert (await locked.client.get("/api/v1/queue")).status_code == 200


async def test_a_reader_can_log_out(locked: Site) -> None:
    await locked.client.post("/login", data={"token": READ_TOKEN})
    out = await locked.client.post("/logout")
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert (await locked.client.get("/api/v1/queue")).status_code == 401


async def test_a_page_has_a_log_out_after_a_log_in(locked: Site, site: Site) -> None:
    assert 'action="/logout"' not in (await site.client.get("/")).text
    outside = await locked.client.get("/static/nothing", headers={"accept": "text/html"})
    assert (outside.status_code, 'action="/logout"' in outside.text) == (404, False)
    await locked.client.post("/login", data={"token": TOKEN})
    for path in ("/", "/features/new", "/nothing", "/static/nothing"):
        page = await locked.client.get(path, headers={"accept": "text/html"})
        assert 'action="/logout"' in page.text, path


async def test_a_browser_gets_errors_as_pages(site: Site) -> None:
    page = await site.client.get("/nothing", headers={"accept": "text/html,*/*"})
    assert (page.status_code, page.headers["content-type"][:9]) == (404, "text/html")
    assert "There is nothing at /nothing" in page.text
    plain = await site.client.get("/nothing")
    assert plain.json()["reason"] == "there is nothing at /nothing"


async def test_a_new_server_answers_a_page_that_was_open_before(dsn: str, tmp_path: Path) -> None:
    async with (
        served(dsn, tmp_path, leads=False) as site,
        site.client.stream("GET", "/?live=0.1") as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert await anext(stream.aiter_lines()) == "event: live"


async def test_a_new_server_refuses_a_wrong_method_before_its_first_page(
    dsn: str, tmp_path: Path
) -> None:
    async with served(dsn, tmp_path, leads=False) as site:
        answer = await site.client.post("/healthz")
        assert (answer.status_code, "GET" in answer.headers["allow"]) == (405, True)
        page = await site.client.get("/healthz/none", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["content-type"][:9]) == (404, "text/html")


async def test_a_name_with_nul_is_accepted_without_the_nul(locked: Site, conn: Connection) -> None:
    add_feature(conn, {1: []})
    await locked.client.post("/login", data={"token": TOKEN, "name": "A\0nn"})
    skipped = await locked.client.post("/api/v1/queue/queue-1-1/skip")
    assert skipped.status_code == 200
    event = conn.execute("select actor from pgcoord.event where kind = 'phase_moved'").fetchone()
    assert event == {"actor": "Ann (panel)"}


async def test_a_trusted_proxy_names_client_and_scheme(dsn: str, tmp_path: Path) -> None:
    async with served(
        dsn, tmp_path, leads=False, environment=TOKENS, trusted_proxies=("127.0.0.0/8",)
    ) as site:
        form = {"token": TOKEN}
        plain = await site.client.post("/login", data=form)
        assert "Secure" not in plain.headers["set-cookie"]
        forwarded = {"x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https"}
        done = await site.client.post("/login", data=form, headers=forwarded)
        assert "Secure" in done.headers["set-cookie"]
        for _ in range(5):
            await site.client.post("/login", data={"token": "x"}, headers=forwarded)
        for client, status in (("192.0.2.7", 429), ("192.0.2.8", 403)):
            headers = {"x-forwarded-for": client}
            answer = await site.client.post("/login", data={"token": "x"}, headers=headers)
            assert answer.status_code == status, client


async def test_headers_of_a_proxy_are_ignored_from_other_clients(
    locked: Site, conn: Connection
) -> None:
    add_feature(conn, {1: []})
    forwarded = {"x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https"}
    answer = await locked.client.post("/login", data={"token": TOKEN}, headers=forwarded)
    assert "Secure" not in answer.headers["set-cookie"]
    skip = "/api/v1/queue/queue-1-1/skip"
    assert (await locked.client.post(skip, headers=STEER | forwarded)).status_code == 200
    event = conn.execute("select actor from pgcoord.event where kind = 'phase_moved'").fetchone()
    assert event == {"actor": "http (127.0.0.1)"}


async def test_a_login_leads_to_no_other_site(locked: Site) -> None:
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example", "/a\nb"):
        form = {"token": TOKEN, "next": elsewhere}
        answer = await locked.client.post("/login", data=form)
        assert answer.headers["location"] == "/"


async def test_failed_log_ins_have_to_wait(locked: Site) -> None:
    for _ in range(5):
        assert (await locked.client.post("/login", data={"token": "x"})).status_code == 403
    late = await locked.client.post("/login", data={"token": "x"})
    assert (late.status_code, late.headers["retry-after"]) == (429, "60")
    assert (await locked.client.post("/login", data={"token": TOKEN})).status_code == 303


async def test_wrong_tokens_of_programs_have_to_wait_and_no_right_one(locked: Site) -> None:
    wrong = {"authorization": "Bearer x", "accept": "text/html"}
    for _ in range(5):
        assert (await locked.client.get("/api/v1/queue", headers=wrong)).status_code != 429
    late = await locked.client.get("/api/v1/queue", headers=wrong)
    assert (late.status_code, late.headers["retry-after"]) == (429, "60")
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"{locked.socket_url}/ws/queue", additional_headers=wrong)
    assert caught.value.response.status_code == 429
    assert (await locked.client.get("/api/v1/queue", headers=STEER)).status_code == 200


HOST_NAMES: Any = [
    ("127.0.0.1", 200),
    ("localhost:8002", 200),
    ("[::1]:80", 200),
    ("evil.example", 403),
    ("127.0.0.1.evil.example", 403),
    ("", 403),
    ("[", 403),
]


async def test_a_name_that_is_not_ours_is_refused(site: Site) -> None:
    for host, status in HOST_NAMES:
        with case(host, status):
            assert (await site.client.get("/healthz", headers={"host": host})).status_code == status


async def test_pages_of_other_sites_can_do_nothing(site: Site, conn: Connection) -> None:
    add_feature(conn, {1: []})
    skip = "/api/v1/queue/queue-1-1/skip"
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1"]:
        with case(origin):
            refused = await site.client.post(skip, headers={"origin": origin})
            assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")
            crossed = await site.client.post(skip, headers={"sec-fetch-site": "cross-site"})
            assert crossed.status_code == 403
            with pytest.raises(InvalidStatus) as caught:
                await connect(f"{site.socket_url}/ws/queue", additional_headers={"origin": origin})
            assert caught.value.response.status_code == 403
            assert statuses(conn) == {1: "queued"}
    assert (await site.client.post(skip, headers={"origin": site.url})).status_code == 200


async def test_answers_carry_headers_that_protect_browsers(site: Site) -> None:
    for path in ("/", "/healthz", "/nothing", "/static/nothing"):
        headers = (await site.client.get(path)).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


async def test_an_invalid_offset_in_a_log_follows_nothing(site: Site, conn: Connection) -> None:
    add_feature(conn, {1: []})
    for place in ("1:" + "9" * 5_000, "9" * 5_000 + ":1", "x", "1:-1"):
        path = f"/phases/queue-1-1?live=x&log={place}"
        async with site.client.stream("GET", path) as answer:
            assert answer.status_code == 200


async def test_a_form_is_read_whatever_its_headers_are(site: Site, conn: Connection) -> None:
    async def post(*headers: str) -> int:
        parts = "".join(f"--b\r\n{each}\r\n\r\nÜbersicht 日本\r\n" for each in headers)
        answer = await site.client.post(
            "/features/new",
            content=f"{parts}--b--\r\n".encode(),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
        return answer.status_code

    assert await post("content-disposition: form-data; name*\r\ndate: (") == 400
    named = "content-disposition: form-data; name"
    assert await post(f'{named}=title; filename="日本.md"', f'{named}="description"') == 303
    row = conn.execute("select title, description from planned_features").fetchone()
    assert row == {"title": "Übersicht 日本", "description": "Übersicht 日本"}


def access(server: Server | None = None, address: str = "127.0.0.1", **environment: str) -> Any:
    return read_access(server or Server(), environment, address=address, name=address)


def test_nothing_is_served_to_others_without_a_token() -> None:
    for address in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(CannotStart, match="PGCOORD_TOKEN, the secret"):
            access(address=address)
        assert access(address=address, PGCOORD_TOKEN=TOKEN).token == TOKEN
    assert access(address="::1").token is None
    with pytest.raises(CannotStart, match="PGCOORD_READ_TOKEN alone"):
        access(PGCOORD_READ_TOKEN=READ_TOKEN)
    with pytest.raises(InvalidConfiguration, match="PGCOORD_TOKEN is too short"):
        access(PGCOORD_TOKEN="short")


@pytest.mark.parametrize("secret", ["", "secret", "whsec_", "whsec_AAAA", "whsec_!" + "A" * 40])
def test_an_unusable_webhook_secret_is_refused(secret: str) -> None:
    server = Server(webhook_secrets=("HOOK",))
    with pytest.raises(InvalidConfiguration, match="HOOK does not hold a secret"):
        access(server, HOOK=secret)


def test_the_public_url_is_a_name_of_ours() -> None:
    found = access(Server(public_url="https://build.example/x"))
    assert found.names == {"localhost", "127.0.0.1", "build.example"}
    assert found.origin == "https://build.example"


def test_a_public_url_without_a_token_is_warned_of() -> None:
    proxied = Server(public_url="https://build.example/x")
    [risk] = access(proxied).risks()
    assert "https://build.example, and PGCOORD_TOKEN is not set" in risk
    assert not [*access(proxied, PGCOORD_TOKEN=TOKEN).risks()]
    for here in ("http://localhost:80", "http://127.0.0.1", "http://[::1]:8"):
        assert not [*access(Server(public_url=here)).risks()]
    assert not [*access().risks()]


async def test_readiness_names_the_leader(dsn: str, tmp_path: Path, conn: Connection) -> None:
    async with served(dsn, tmp_path, leads=False) as idle:
        nobody = await idle.client.get("/readyz")
        assert nobody.status_code == 503
        assert nobody.json() == {"ready": False, "reason": "no coordinator leads"}
        async with served(dsn, tmp_path) as site:
            await site.state.coordinator.leads.wait()
            ready = await site.client.get("/readyz")
            assert (ready.status_code, ready.json()["role"]) == (200, "leading")
            other = await idle.client.get("/readyz")
            assert (other.status_code, other.json()["role"]) == (200, "standing by")
        conn.execute("delete from pgcoord.migration where name = 'functions'")
        wrong = await idle.client.get("/readyz")
        assert wrong.status_code == 503
        assert "of another release" in wrong.json()["reason"]


async def test_any_number_of_questions_for_readiness_cost_the_database_one_look(
    dsn: str, site: Site, conn: Connection
) -> None:
    waiting = (
        "select count(*) as n from pg_stat_activity"
        " where datname = current_database() and wait_event_type = 'Lock'"
    )
    with psycopg.connect(dsn) as other:
        other.execute("lock table pgcoord.migration")
        asked = [asyncio.create_task(site.client.get("/readyz")) for _ in range(20)]
        async with asyncio.timeout(PATIENCE):
            while conn.execute(waiting).fetchone() != {"n": 1}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # nobody notifies of it
            await site.client.get("/healthz")  # it came after them
        assert conn.execute(waiting).fetchone() == {"n": 1}
    answers = [await each for each in asked]
    assert {answer.json()["reason"] for answer in answers} == {"no coordinator leads"}


def sample(text: str, name: str) -> float:
    match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert match, f"no {name} in\n{text}"
    return float(match[1])


async def test_metrics_count_phases_reports_and_claims(
    site: Site, conn: Connection, epoch: int
) -> None:
    before = (await site.client.get("/metrics")).text
    assert sample(before, 'pgcoord_phases{status="queued"}') == 0
    add_feature(conn, {1: [], 2: [1], 3: [1]})
    claim(conn, epoch)
    start(conn, epoch, "queue-1-1")
    await site.report({"queue_id": "queue-1-1", "status": "completed"})
    await site.report({"queue_id": "queue-1-1", "status": "completed"})
    await site.report({"queue_id": "queue-1-1", "status": "failed"})
    await site.report({"queue_id": "queue-1-1", "status": "failed"}, None)
    assert claim(conn, epoch) == ["queue-1-2", "queue-1-3"]
    answer = await site.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    for name, value in {
        'pgcoord_phases{status="completed"}': 1,
        'pgcoord_phases{status="ready"}': 2,
        'pgcoord_slots{pool="local"}': 3,
        'pgcoord_slots_held{pool="local"}': 2,
        "pgcoord_leads": 0,
        'pgcoord_attempts_total{outcome="completed",workflow="work"}': 1,
        'pgcoord_webhooks_total{result="taken"}': 1,
        'pgcoord_webhooks_total{result="repeated"}': 1,
        'pgcoord_webhooks_total{result="refused"}': 1,
        'pgcoord_webhooks_total{result="not_signed"}': 1,
        "pgcoord_run_seconds_count": 1,
        "pgcoord_wait_seconds_count": 1,
        "pgcoord_hop_seconds_count": 3,
        "pgcoord_oldest_eligible_seconds": 0,
        'pgcoord_reconnects{connection="feed"}': 0,
    }.items():
        assert sample(text, name) == value, name
    assert 0 <= sample(text, "pgcoord_notification_queue_usage") < 1
    again = (await site.client.get("/metrics")).text
    assert sample(again, "pgcoord_run_seconds_count") == 1


async def test_requests_that_wait_for_the_database_are_no_lost_connection() -> None:
    words = "4 requests of the same kind (report) are waiting for the database"
    answer = await answer_error(Request({"type": "http"}), TooManyRequests(words))
    assert (answer.status_code, json.loads(bytes(answer.body))["reason"]) == (503, words)


async def test_a_database_that_is_lost_is_an_answer_that_may_be_repeated(
    site: Site, conn: Connection, epoch: int
) -> None:
    add_feature(conn, {1: [], 2: [1]})
    claim(conn, epoch)
    start(conn, epoch, "queue-1-1")
    body = {"queue_id": "queue-1-1", "status": "completed"}
    with psycopg.connect(conn.info.dsn, password=None) as other:
        # The report waits for this lock, in the middle of its transaction.
        other.execute("select from planned_features for update")
        waiting = asyncio.create_task(site.report(body))
        victim = None
        while victim is None:
            row = conn.execute(
                "select pid from pg_stat_activity where wait_event_type = 'Lock'"
                " and datname = current_database()"
            ).fetchone()
            victim = row and row["pid"]
            await asyncio.sleep(0)
        conn.execute("select pg_terminate_backend(%s)", [victim])
        answer = await waiting
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"] == "unavailable"
        assert "may be repeated" in answer.json()["reason"]
        assert answer.headers["retry-after"] == "1"
    assert statuses(conn)[1] == "running"
    again = await site.report(body)
    assert (again.status_code, again.json()["repeated"]) == (200, False)
    moves = conn.execute("select from pgcoord.event where to_status = 'completed'").fetchall()
    assert len(moves) == 1
