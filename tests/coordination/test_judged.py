"""Phases that are judged: checks, the prompt after a failure, and what is tried again later."""

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from support.coordination import Gate, Watch, make_coordinator, running, scripts

from pgcoord.configuration.model import Check

AGENT = ("sh", "-c", 'cat "$PGCOORD_PROMPT_FILE" >>seen; printf "\\n---\\n" >>seen; echo worked')
OVERLOADED = json.dumps(
    {
        "type": "result",
        "is_error": True,
        "result": "API Error: Repeated 529 Overloaded errors",
        "total_cost_usd": 0.25,
    }
)


async def test_after_a_failed_check_the_agent_is_asked_once_more_with_the_failure(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    work = scripts(
        command=AGENT,
        directory=tmp_path,
        check=Check(("sh", "-c", "echo checking; test $(grep -cx -- --- seen) = 2")),
        max_attempts=2,
        retry_delay=timedelta(0),
        retry_prompt="It failed: {error}\nYou were asked: {prompt}",
    )
    await watch.submit("Do {it}.")
    async with running(make_coordinator(dsn, tmp_path, work)):
        await watch.until_statuses("completed")
    first, second, _ = (tmp_path / "seen").read_text().split("\n---\n")
    assert first == "Do {it}."
    assert second.startswith(
        "It failed: exited with status 1\npgcoord: the check failed with status 1\n"
    )
    assert second.endswith("\nchecking\nYou were asked: Do {it}.")


async def test_a_plan_names_a_check_that_the_configuration_declares(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    coordinator = make_coordinator(dsn, tmp_path)
    coordinator.configuration = replace(
        coordinator.configuration, checks={"never": Check(("false",))}
    )
    await watch.submit("true", check="never")
    await watch.submit("true", check="unknown")
    async with running(coordinator):
        failed, unknown = await watch.until_statuses("failed", "failed")
    assert "\npgcoord: the check failed with status 1" in failed["error_message"]
    assert unknown["error_message"] == "check unknown is not declared"


async def test_a_wait_for_a_model_uses_up_no_attempt(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    work = scripts(
        command=("echo", OVERLOADED.replace("{", "{{").replace("}", "}}")), agent="claude"
    )
    await watch.submit("Do it.")
    async with running(make_coordinator(dsn, tmp_path, work)):
        for wait in (30, 60, 120):
            await watch.until_found("select from phase_queue where retry_at is not null")
            row = await watch.one(
                "select status, attempts_used, error_message,"
                " extract(epoch from retry_at"
                "   - (select max(ended_at) from pgcoord.attempt)) as wait from phase_queue"
            )
            assert 0.9 * wait < row.pop("wait") < 1.5 * wait
            assert row == {
                "status": "queued",
                "attempts_used": 0,
                "error_message": "try again later: API Error: Repeated 529 Overloaded errors",
            }
            await watch.one("select pgcoord.retry_phase('queue-1-1')")
        await watch.until_found("select from phase_queue where retry_at is not null")
    waits = await watch.one("select words from pgcoord.why('queue-1-1') where kind = 'retry'")
    assert re.fullmatch(
        r"is tried again at \S+ UTC \(try 5 in a row since \S+ UTC\), after: try again later: .*",
        waits["words"],
    )
    since = (
        "select kind, since < now() - interval '1 hour' as is_long, words from pgcoord.attention"
    )
    assert await watch.all(since) == []
    await watch.all(
        "update pgcoord.attempt set ended_at = ended_at - interval '61 min' returning 1"
    )
    assert await watch.all(since) == [
        {
            "kind": "later",
            "is_long": True,
            "words": "was given back 4 times:"
            " try again later: API Error: Repeated 529 Overloaded errors",
        }
    ]
    spent = await watch.one("select cost_usd from pgcoord.feature")
    assert spent["cost_usd"] >= 0.75, "what was spent in vain counts, too"


async def test_a_workflow_sets_the_length_and_number_of_its_waits(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    later = """echo '{"status": "later", "error": "no answer"}' > $PGCOORD_RESULT_FILE"""
    work = scripts(later_delay=timedelta(hours=1), max_later=1)
    await watch.submit(later)
    async with running(make_coordinator(dsn, tmp_path, work)):
        await watch.until_found("select from phase_queue where retry_at is not null")
        row = await watch.one("select retry_at - now() > '50 min' as waits from phase_queue")
        assert row == {"waits": True}
        await watch.one("select pgcoord.retry_phase('queue-1-1')")
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"] == "no answer (max_later = 1 is reached)"
    assert row["attempts_used"] == 1


async def test_a_quiet_process_is_shown_until_its_next_output(
    dsn: str, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgcoord.coordination.supervision._RECHECK", 0.01)
    gate = Gate(tmp_path / "gate")
    await watch.submit(f"read _ < {gate.path}; while :; do echo; sleep 0.01; done")
    quiet = "select words from pgcoord.why('queue-1-1') where kind = 'quiet'"
    async with running(make_coordinator(dsn, tmp_path, scripts(quiet=timedelta(seconds=0.3)))):
        await watch.until_found(quiet)
        (found,) = await watch.all(quiet)
        assert found["words"].startswith("has written nothing since ")
        (needs,) = await watch.all("select kind from pgcoord.attention")
        assert needs["kind"] == "quiet"
        (doctor,) = await watch.all(
            "select level, words from pgcoord.checkup() where kind = 'quiet'"
        )
        assert doctor["level"] == "warn"
        assert doctor["words"].startswith("1 phase is quiet: queue-1-1 for ")
        gate.open()
        await watch.until_found(quiet, nothing=True)
        await watch.one("select pgcoord.cancel_phase('queue-1-1', 'seen')")
        await watch.until_statuses("cancelled")


async def test_a_quiet_process_is_ended_where_the_workflow_sets_quiet_ends(
    dsn: str, watch: Watch, tmp_path: Path
) -> None:
    await watch.submit("sleep 600")
    work = scripts(quiet=timedelta(seconds=0.2), quiet_ends=True)
    async with running(make_coordinator(dsn, tmp_path, work)):
        (row,) = await watch.until_statuses("failed")
    assert row["error_message"].startswith("wrote nothing for ")
