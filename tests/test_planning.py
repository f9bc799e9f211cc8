"""From a feature to its phases by every door: planned, edited, planned again, executed."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Connection, statuses
from serving import Site, served

API = "/api/v1/planned-features"

DESCRIPTION = """\
Show changes in the panel as they happen.

1. Database schema: add the WebSocket tables
2. Backend API: implement WebSocket endpoints for real-time updates
3. Frontend components: build the WebSocket UI
4. Integration tests of the whole
5. Documentation of the WebSocket API
"""


@pytest.fixture
async def site(dsn: str, tmp_path: Path) -> Any:
    async with served(dsn, tmp_path, leads=False) as site:
        yield site


async def make(site: Site, **feature: object) -> str:
    """Store a feature; return its path."""
    created = await site.client.post(API, json=feature)
    assert created.status_code == 201, created.text
    return str(created.headers["location"])


async def make_example(site: Site) -> str:
    return await make(
        site, title="WebSocket Migration", description=DESCRIPTION, estimated_hours=10
    )


async def post(site: Site, path: str, status: int = 200) -> Any:
    answer = await site.client.post(path)
    assert answer.status_code == status, answer.text
    return answer.json()


def inserted(conn: Connection) -> list[Any]:
    """The phases in the queue, as planned_features.plan would have them."""
    rows = conn.execute(
        "select jsonb_build_object('phase_number', phase_number,"
        " 'depends_on_phases', depends_on_phases) || phase_data as phase"
        " from phase_queue order by phase_number"
    ).fetchall()
    return [row["phase"] for row in rows]


async def test_the_example_of_the_specification_comes_out_with_its_parallel_phases(
    site: Site, conn: Connection
) -> None:
    path = await make_example(site)
    planned = await post(site, f"{path}/generate-implementation")
    edges = {each["phase_number"]: each["depends_on_phases"] for each in planned["phases"]}
    assert edges == {1: [], 2: [1], 3: [1], 4: [2, 3], 5: [1]}
    assert [each["estimated_hours"] for each in planned["phases"]] == [2, 3, 2, 2, 1]
    planning = planned["planning"]
    assert planning["source"] == "built-in"
    assert planning["waves"] == [[1], [2, 3, 5], [4]]
    assert (planning["critical_path"], planning["critical_path_hours"]) == ([1, 2, 4], 7)
    assert (planning["slots"], planning["hours"], planning["hours_with_slots"]) == (3, 10, 7)
    assert planning["warnings"] == planning["notes"] == []
    assert statuses(conn) == {}
    done = await post(site, f"{path}/execute")
    assert done["queued"] == 5
    assert inserted(conn) == planned["phases"]
    assert statuses(conn) == dict.fromkeys(range(1, 6), "queued")


async def test_executing_plans_first_where_there_is_no_plan(site: Site, conn: Connection) -> None:
    path = await make_example(site)
    assert (await post(site, f"{path}/execute"))["queued"] == 5
    assert (await post(site, f"{path}/execute"))["message"] == "its phases were queued before"
    late = await post(site, f"{path}/generate-implementation", 409)
    assert "its plan stays as it is" in late["reason"]
    assert len(statuses(conn)) == 5
