"""Rows that an older release stored, and none takes today: no page, list, stream or loop fails."""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from support.database import Connection, add_feature, add_phase
from support.desk import Desk, address_of, until

from pgcoord.database.loaders import load_json

DEEP = "[" * 1_500 + "]" * 1_500
LONG = "9" * 5_000

ROWS = {
    "digits": f'{{"title": "Odd", "x": {LONG}}}',
    "negative digits": f'{{"title": "Odd", "x": [-{LONG}, 1e400, {LONG}.5]}}',
    "depth": f'{{"title": "Odd", "x": {DEEP}}}',
    "hours": f'{{"title": "Odd", "estimated_hours": {LONG}}}',
    "other types": '{"title": "Odd", "estimated_hours": {}, "files": 5, "depends_on": 1}',
}


def store(conn: Connection, data: str) -> int:
    """Have a feature with this in its phase, its tags and its plan, as no trigger would let it."""
    feature = add_feature(conn, {1: [], 2: [1]})
    conn.execute("alter table public.phase_queue disable trigger user")
    conn.execute("alter table public.planned_features disable trigger user")
    conn.execute(
        "update phase_queue set phase_data = %s where feature_id = %s and phase_number = 1",
        [data, feature],
    )
    conn.execute(
        "update planned_features set tags = %s, plan = %s where id = %s",
        [f"[{data}]", f"[{data}]", feature],
    )
    conn.execute("alter table public.phase_queue enable trigger user")
    conn.execute("alter table public.planned_features enable trigger user")
    return feature


def get(address: str, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{address}{path}") as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.code} {error.read().decode()[-1500:]}") from None


@pytest.mark.parametrize("data", ROWS.values(), ids=list(ROWS))
def test_pages_lists_and_the_loop_go_on_beside_an_odd_row(
    desk: Desk, dsn: str, conn: Connection, data: str
) -> None:
    feature = store(conn, data)
    conn.execute("select pgcoord.pause(%s, %s)", [feature, "for a while"])
    address = address_of(desk.start("serve"))
    for path in ("/", f"/features/{feature}", f"/phases/queue-{feature}-1", "/history"):
        assert "<html" in get(address, path), path
    for path in ("queue", f"queue/queue-{feature}-1", "planned-features", "slots"):
        json.loads(get(address, f"/api/v1/{path}"), parse_constant=pytest.fail)
    json.loads(get(address, f"/api/v1/planned-features/{feature}"), parse_constant=pytest.fail)
    with urllib.request.urlopen(f"http://{address}/events") as stream:
        assert stream.readline()
    add_phase(
        conn,
        add_feature(conn, {}),
        1,
        phase_data=Jsonb({"prompt_content": "true"}),
    )
    until(dsn, f"bool_and(status = 'completed') from phase_queue where feature_id > {feature}")
    conn.execute("select pgcoord.resume(%s)", [feature])
    until(
        dsn,
        f"bool_or(attempt > 0) from phase_queue where feature_id = {feature} and phase_number = 1",
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, "[\\"{", true]}', {"a": [1, 2.5, '["{', True]}),
        (f"[{LONG}, -{LONG}]", [1.7976931348623157e308, -1.7976931348623157e308]),
        ("1e999", 1.7976931348623157e308),
    ],
)
def test_valid_json_is_read_unchanged(text: str, value: Any) -> None:
    assert load_json(text) == value
    assert load_json(text.encode()) == value


def test_json_that_is_too_deep_is_cut_and_the_rest_is_kept() -> None:
    loaded = load_json(f'{{"a": {DEEP}, "b": "[[{{\\"", "c": [{DEEP}, 3]}}')
    assert (loaded["b"], loaded["c"][1]) == ('[[{"', 3)
    assert json.loads(json.dumps(loaded)) == loaded
    many = "[" + ",".join(['{"a": [1]}'] * 1_000) + "]"
    assert load_json(many) == [{"a": [1]}] * 1_000


@pytest.mark.parametrize("time", ["infinity", "294276-12-31 00:00+00"])
def test_a_retry_time_that_never_comes_holds_up_nothing(
    desk: Desk, dsn: str, conn: Connection, time: str
) -> None:
    feature = add_feature(conn, {1: []})
    conn.execute("alter table public.phase_queue disable trigger user")
    conn.execute("alter table public.phase_queue drop constraint phase_queue_holds")
    conn.execute("update phase_queue set retry_at = %s, created_at = %s", [time, time])
    conn.execute("alter table public.phase_queue enable trigger user")
    serve = desk.start("serve")
    address = address_of(serve)
    serve.until("leading")
    for path in ("/", f"/features/{feature}", f"/phases/queue-{feature}-1"):
        assert "<html" in get(address, path), path
    json.loads(get(address, "/api/v1/queue"))
    assert desk.call("status").returncode == 0
    add_phase(conn, add_feature(conn, {}), 1, phase_data=Jsonb({"prompt_content": "true"}))
    until(dsn, f"bool_and(status = 'completed') from phase_queue where feature_id > {feature}")
    assert conn.execute("select from pgcoord.checkup()").rowcount > 0
    assert "tried again" not in serve.output
