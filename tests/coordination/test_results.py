"""Results: what a phase writes reaches the phases after it; whatever lies there, the phase ends."""

import json
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from support.coordination import Watch, make_coordinator, running, scripts
from support.walk import blocks_of

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"


def write(result: object) -> str:
    return f"echo '{json.dumps(result)}' > $PGCOORD_RESULT_FILE"


async def test_results_reach_the_phases_that_need_them(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs.json"
    await watch.submit(
        write({"summary": "$(id) 'x' {title}".replace("'", ""), "cost_usd": 0.5, "tokens_in": 7}),
        (write({"summary": "two", "cost_usd": 0.25}), [1]),
        ("true", [1]),
        (
            f"cp $PGCOORD_INPUT_FILE {inputs}; cat > {tmp_path / 'said'} <<'.'\n"
            "{result.1.summary}|{result.2.cost_usd}|{{result.2.summary}}|{result}\n.",
            [2, 3],
        ),
    )
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses(*["completed"] * 4)
    first = {"summary": "$(id) x {title}", "cost_usd": 0.5, "tokens_in": 7}
    assert json.loads(inputs.read_text()) == {
        "1": first,
        "2": {"summary": "two", "cost_usd": 0.25},
    }
    assert (tmp_path / "said").read_text() == "$(id) x {title}|0.25|{result.2.summary}|{result}\n"
    cost = await watch.one("select cost_usd, tokens_in, tokens_out from pgcoord.feature")
    assert cost == {"cost_usd": 0.75, "tokens_in": 7, "tokens_out": None}


async def test_a_missing_result_of_a_prerequisite_fails_the_phase_before_the_start(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(write({"branch": "x"}), ("echo {result.1.summary}", [1]), "true")
    async with running(make_coordinator(dsn, tmp_path)):
        rows = await watch.until_statuses("completed", "failed", "completed")
    assert rows[1]["error_message"] == (
        "{result.1.summary} in the prompt: phase 1 has no result 'summary',"
        " or this phase does not depend on it"
    )
    assert rows[1]["started_timestamp"] is None


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo '{\"a\": 1' > $PGCOORD_RESULT_FILE", "it is not JSON"),
        (  # two processes at once: the end of the longer text stands behind the shorter one
            """echo '{"summary": "long"}' 1<> $PGCOORD_RESULT_FILE;"""
            """ echo '{"a": 1}' 1<> $PGCOORD_RESULT_FILE""",
            "it is not JSON",
        ),
        ("echo '[1]' > $PGCOORD_RESULT_FILE", "the result is of type array, not an object"),
        ("head -c 300000 /dev/zero > $PGCOORD_RESULT_FILE", "it has more than 204 kB"),
        ("head -c 70000 /dev/zero > $PGCOORD_RESULT_FILE", "it is not JSON"),
        ("printf '\\377' > $PGCOORD_RESULT_FILE", "it is not UTF-8 at byte 0"),
        ('printf \'{"a": "\\\\u0000"}\' > $PGCOORD_RESULT_FILE', "it is not JSON"),
        ("ln -s /etc/hostname $PGCOORD_RESULT_FILE", "it is not a plain file of its run"),
        ("mkfifo $PGCOORD_RESULT_FILE", "it is not a plain file of its run"),
        (write({"cost_usd": "much"}), 'the result has cost_usd that is not an amount: "much"'),
    ],
)
async def test_a_result_file_that_cannot_be_used_fails_the_phase(
    dsn: str, watch: Watch, tmp_path: Path, script: str, error: str
) -> None:
    await watch.submit(script)
    async with running(make_coordinator(dsn, tmp_path)):
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"].startswith(f"its result file cannot be used: {error}")


async def test_costs_of_an_attempt_count_though_its_result_is_refused(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit(write({"summary": 1, "cost_usd": 0.5, "tokens_in": 7}), max_attempts=1)
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("failed")
    assert await watch.one("select cost_usd, tokens_in from pgcoord.feature") == {
        "cost_usd": Decimal("0.5"),
        "tokens_in": 7,
    }


async def test_the_page_of_agents_documents_the_variables_and_files_in_use(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    blocks = list(blocks_of(PAGE))
    [writes] = [each.code for each in blocks if each.language == "sh"]
    [reads] = [each.code for each in blocks if each.language == "json"]
    inputs = tmp_path / "inputs.json"
    await watch.submit(writes, (f"cp $PGCOORD_INPUT_FILE {inputs}", [1]))
    async with running(make_coordinator(dsn, tmp_path)):
        await watch.until_statuses("completed", "completed")
    assert json.loads(inputs.read_text()) == json.loads(reads)


async def test_a_result_says_how_its_phase_went(dsn: str, watch: Watch, tmp_path: Path) -> None:
    await watch.submit(
        write({"status": "failed", "error": "no tool"}), write({"status": "completed"})
    )
    async with running(make_coordinator(dsn, tmp_path, scripts(reports=True))):
        rows = await watch.until_statuses("failed", "completed")
    assert rows[0]["error_message"] == "no tool"


async def test_a_report_that_could_not_be_sent_does_not_overtake_the_result(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    report = f"PGCOORD_REPORT_URL= {sys.executable} -m pgcoord report completed --patience 0"
    await watch.submit(f"{report}; {write({'branch': 'b'})}", ("test '{result.1.branch}' = b", [1]))
    async with running(make_coordinator(dsn, tmp_path, scripts(reports=True))):
        rows = await watch.until_statuses("completed", "failed")
    assert rows[1]["error_message"] == "exited 0 without reporting", "it had no branch"
