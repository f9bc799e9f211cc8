"""A page of a feature with many dependencies: what is read and sent grows as the dependencies."""

import re
import urllib.request
from typing import Any

import psycopg
import pytest
from support.database import Connection, add_feature
from support.desk import Desk, address_of

from pgcoord.assets import SQL
from pgcoord.database import panel


def add_mesh(conn: Connection, phases: int) -> int:
    """Add a feature whose phases each depend on all before; return how many edges it has."""
    prerequisites = {number: list(range(1, number)) for number in range(1, phases + 1)}
    with conn.transaction():
        add_feature(conn, prerequisites)
    return phases * (phases - 1) // 2


def page_of(desk: Desk, feature: int) -> str:
    address = address_of(desk.start("serve"))
    with urllib.request.urlopen(f"http://{address}/features/{feature}") as page:
        return str(page.read().decode())


def edges_drawn(page: str) -> int:
    return len(re.findall(r'<path class="edge \w+ \w+" d="M\d+ \d+C', page))


def rows_looked_at(plan: dict[str, Any]) -> float:
    """How many rows the nodes of an executed plan put out, or compared and dropped."""
    each = plan["Actual Rows"] + plan.get("Rows Removed by Join Filter", 0)
    return float(plan["Actual Loops"] * each) + sum(map(rows_looked_at, plan.get("Plans", [])))


@pytest.mark.own_database
def test_a_forecast_looks_at_each_edge_a_few_times_only(conn: Connection) -> None:
    edges = add_mesh(conn, 200)
    [function] = conn.execute(
        "select prosrc, proconfig from pg_proc where proname = 'edges_between'"
    ).fetchall()
    for setting in function["proconfig"]:
        conn.execute(
            "select set_config(split_part(%s, '=', 1), split_part(%s, '=', 2), false)",
            [setting, setting],
        )
    body = function["prosrc"].replace("p_features", "%(of)s").replace("p_numbers", "%(numbers)s")
    [row] = conn.execute(
        f"explain (analyze, format json) {body}".encode(),
        {"of": [1] * 200, "numbers": list(range(1, 201))},
    ).fetchall()
    assert edges < rows_looked_at(row["QUERY PLAN"][0]["Plan"]) < 10 * edges


@pytest.mark.own_database
async def test_the_overview_reads_no_table_of_finished_phases(dsn: str, conn: Connection) -> None:
    conn.execute((SQL / "bench/finished.sql").read_text().replace("{features}", "200").encode())
    conn.execute("vacuum analyze")
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as reader,
        reader.transaction(),
    ):
        for _ in range(7):  # from the sixth time on, plans do not know the values
            await panel.attention(reader)
            await panel.held_slots(reader)
            await panel.line(reader, 3)
            await panel.backlog(reader)
            await panel.feature_rows(reader, "all", None, 200)
            await panel.since(reader, None)
        scanned = await reader.execute(
            "select relname, seq_tup_read from pg_stat_xact_user_tables"
            " where relname in ('phase_queue', 'event', 'attempt') and seq_tup_read > 0"
        )
        assert await scanned.fetchall() == []


@pytest.mark.scale
def test_a_graph_with_too_many_edges_is_not_drawn_and_its_page_stays_small(
    desk: Desk, conn: Connection
) -> None:
    conn.execute("select pgcoord.pause()")
    edges = add_mesh(conn, 120)
    page = page_of(desk, 1)
    assert f"{edges} dependencies of 120 phases are too many for a picture" in page
    assert edges_drawn(page) == 0
    assert "; and 116 more" in page  # of phase 120: three of its 119 reasons are shown
    assert len(page) < 120 * 4_000


def test_a_graph_of_few_phases_is_drawn_with_all_its_edges(desk: Desk, conn: Connection) -> None:
    conn.execute("select pgcoord.pause()")
    edges = add_mesh(conn, 20)
    page = page_of(desk, 1)
    assert edges_drawn(page) == edges
