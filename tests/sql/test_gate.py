"""Gates: a phase waits for approval, holds no slot meanwhile, and shows its answer and author."""

import re
from dataclasses import replace

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import (
    Connection,
    add_feature,
    add_phase,
    as_user,
    claim,
    one,
    phase,
    refused,
    statuses,
)

from pgcoord.plan.parsing import parse_plan

ASKS = Jsonb({"gate": "may it be merged?", "prompt_content": "Merge it."})


def events(conn: Connection, *kinds: str) -> list[tuple[str, str, str | None]]:
    found = conn.execute(
        "select kind, actor, reason from pgcoord.event where kind = any (%s) order by id",
        [list(kinds)],
    )
    return [(row["kind"], row["actor"], row["reason"]) for row in found]


def why(conn: Connection, queue_id: str) -> list[tuple[str, str]]:
    found = conn.execute(
        "select kind, words from pgcoord.why(%s) where kind <> 'empty'", [queue_id]
    )
    return [(row["kind"], row["words"]) for row in found]


def test_a_gate_is_asked_when_its_prerequisites_are_completed(conn: Connection, epoch: int) -> None:
    feature = add_feature(conn, {1: []})
    gate = add_phase(conn, feature, 2, [1], phase_data=ASKS)
    with refused("PC002", "its prerequisites are not completed"):
        conn.execute("select pgcoord.approve(%s, 'early')", [gate])
    assert events(conn, "gate_asked") == []
    assert claim(conn, epoch) == ["queue-1-1"]
    conn.execute("select pgcoord.complete_phase('queue-1-1')")
    assert [reason for _, _, reason in events(conn, "gate_asked")] == ["may it be merged?"]
    assert claim(conn, epoch) == []
    [(kind, words)] = why(conn, gate)
    assert kind == "gate"
    assert re.fullmatch(r"asks for approval since [\d:]+ UTC: may it be merged\?", words)
    assert one(conn, "select kind, words from pgcoord.attention") == {
        "kind": "gate",
        "words": "may it be merged?",
    }
    conn.execute("set pgcoord.actor = 'ada'")
    conn.execute("select pgcoord.approve(%s, 'looks good')", [gate])
    assert events(conn, "gate_approved") == [("gate_approved", "ada", "looks good")]
    assert claim(conn, epoch) == [gate]


def test_a_gate_that_runs_nothing_is_completed_by_its_approval(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {2: [1]})
    gate = add_phase(conn, feature, 1, phase_data=Jsonb({"gate": "before the merge"}))
    assert claim(conn, epoch) == []
    conn.execute("select pgcoord.approve(%s)", [gate])
    assert statuses(conn) == {1: "completed", 2: "queued"}
    assert phase(conn, gate)["attempt"] == 0
    assert claim(conn, epoch) == ["queue-1-2"]


@pytest.mark.parametrize("prompt", ["", " ", "\n\t\n", "do it", "\u00a0"])
@pytest.mark.parametrize("keys", ["", "Gate: may it?\n", "Gate: may it?\nWorkflow: work\n"])
def test_a_plan_and_the_database_agree_which_phases_are_gates(
    conn: Connection, prompt: str, keys: str
) -> None:
    [read] = parse_plan(f"# T\n## Phase 1: A\n{keys}\nx", name="plan").phases
    read = replace(read, prompt=prompt)
    found = one(conn, "select pgcoord_private.only_asks(%s) as asks", Jsonb(read.row()))
    assert found["asks"] is read.only_asks


def test_a_rejected_gate_blocks_its_dependents_and_asks_again_when_retried(
    conn: Connection, epoch: int
) -> None:
    feature = add_feature(conn, {2: [1]})
    gate = add_phase(conn, feature, 1, phase_data=ASKS)
    conn.execute("set pgcoord.actor = 'ada'")
    conn.execute("select pgcoord.reject(%s, 'not today')", [gate])
    assert statuses(conn) == {1: "cancelled", 2: "blocked"}
    [(kind, words)] = why(conn, gate)
    assert kind == "cancelled"
    assert words.startswith("rejected: not today (ada at ")
    with refused("PC002", "nobody is asked about it any more"):
        conn.execute("select pgcoord.approve(%s)", [gate])
    conn.execute("select pgcoord.retry_phase(%s)", [gate])
    assert statuses(conn) == {1: "queued", 2: "queued"}
    assert claim(conn, epoch) == []
    assert len(events(conn, "gate_asked")) == 2
    conn.execute("select pgcoord.approve(%s)", [gate])
    assert claim(conn, epoch) == [gate]
    with refused("PC002", "was approved before"):
        conn.execute("select pgcoord.reject(%s)", [gate])


def test_no_statement_gives_a_slot_to_a_phase_that_nobody_has_approved(
    conn: Connection, epoch: int
) -> None:
    gate = add_phase(conn, add_feature(conn, {}), 1, phase_data=ASKS)
    conn.execute("set session_replication_role = replica")  # triggers are off
    with pytest.raises(psycopg.errors.CheckViolation, match="starts_when_claimable"):
        conn.execute(
            "update phase_queue set slot = 1, status = 'running' where queue_id = %s", [gate]
        )


@pytest.mark.parametrize("gate", ["", "  ", 3, ["a"]])
def test_a_gate_is_a_question(conn: Connection, gate: object) -> None:
    feature = add_feature(conn, {})
    with refused("PC005", f"phase_data of phase queue-{feature}-1: gate is", "the question"):
        add_phase(conn, feature, 1, phase_data=Jsonb({"gate": gate}))


def test_a_question_changed_by_a_client_is_asked_anew(
    conn: Connection, dsn: str, logins: dict[str, str]
) -> None:
    gate = add_phase(conn, add_feature(conn, {}), 1, phase_data=ASKS)
    conn.execute("select pgcoord.approve(%s)", [gate])
    with psycopg.connect(as_user(dsn, logins["client"]), autocommit=True) as client:
        client.execute('update phase_queue set phase_data = phase_data || \'{"gate": "really?"}\'')
        assert phase(conn, gate)["gated"]
        with refused("PC008", f"gated of phase {gate} cannot be changed by hand", "approve"):
            client.execute("update phase_queue set gated = false")
        client.execute("update phase_queue set phase_data = phase_data - 'gate'")
    assert not phase(conn, gate)["gated"]
    assert [(kind, reason) for kind, _, reason in events(conn, "gate_asked", "gate_removed")] == [
        ("gate_asked", "may it be merged?"),
        ("gate_asked", "really?"),
        ("gate_removed", None),
    ]
