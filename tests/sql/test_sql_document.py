"""docs/sql.md: every statement on it is run, in order, and shows what the page says it does."""

import re
from pathlib import Path

import pytest
from support.database import WORKFLOW, Connection, as_user, claim, start, take_lead
from support.sql_document import TAG, plain, steps
from support.terminal import Psql, Terminal, surroundings

DOCUMENT = Path(__file__).parents[2] / "docs" / "sql.md"


class Stage:
    """What happens besides: a coordinator, and the processes that it would run."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._epoch = 0

    def direct(self, direction: str) -> None:
        if direction == "a coordinator leads":
            self._epoch = take_lead(self._conn, {**WORKFLOW, "name": "agent"})
        elif direction == "the coordinator claims and starts":
            claimed = claim(self._conn, self._epoch)
            assert claimed
            for queue_id in claimed:
                start(self._conn, self._epoch, queue_id)
        elif direction == "the machine of what runs is lost":
            self._conn.execute(
                "update pgcoord.attempt set host = 'elsewhere' where ended_at is null"
            )
        else:
            gone = re.fullmatch(r"the process of (\S+) is gone", direction)
            assert gone, direction
            ended = self._conn.execute(
                "select pgcoord_private.end_attempt(id, 143) from pgcoord.attempt"
                " where queue_id = %s and exited_at is null",
                [gone[1]],
            )
            assert ended.rowcount == 1


@pytest.mark.scale
@pytest.mark.usefixtures("logins")
def test_every_statement_of_the_page_gives_the_output_shown(
    conn: Connection, dsn: str, logins: dict[str, str], tmp_path: Path
) -> None:
    stage = Stage(conn)
    of_client = surroundings(as_user(dsn, logins["client"]), tmp_path)
    with Psql(of_client) as client, Psql(surroundings(dsn, tmp_path)) as owner:
        found = steps(DOCUMENT.read_text())
        assert found
        for step in found:
            directions = set(step.directions)
            for direction in step.directions:
                if direction not in ("as the owner", "in a terminal, until Ctrl-C"):
                    stage.direct(direction)
            if "in a terminal, until Ctrl-C" in directions:
                watch(of_client, step.statements)
                continue
            psql = owner if "as the owner" in directions else client
            output = plain(psql.run(step.statements))
            if step.shows:
                assert output == plain(step.shows), step.statements
            else:
                assert [line for line in output if not TAG.fullmatch(line)] == [], step.statements


def watch(environment: dict[str, str], statements: str) -> None:
    """Type what ends in `\\watch`, and press Ctrl-C when something was shown twice."""
    *lines, last = statements.splitlines()
    assert last.startswith("\\watch")
    with Terminal(environment) as terminal:
        for line in lines:
            terminal.type(line)
        terminal.start(last)
        terminal.until(re.compile(r"\(\d+ rows\).*\(\d+ rows\)", re.DOTALL))
        terminal.interrupt()


def test_no_block_of_sql_is_left_out() -> None:
    page = DOCUMENT.read_text()
    assert len(steps(page)) == page.count("\n```sql\n")
    assert page.count("\n```text\n") == sum(bool(step.shows) for step in steps(page))
