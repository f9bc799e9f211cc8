"""A statement that one row makes fail does not end the coordinator, whatever its SQLSTATE is."""

import pytest
from support.database import Connection, add_feature, claim, start, take_lead
from support.desk import Desk, until


def break_row(conn: Connection, table: str, sqlstate: str, condition: str) -> None:
    """Have the updates of *table* fail that make *condition* true."""
    conn.execute(
        "create function public.refuse() returns trigger language plpgsql as $$ begin"
        f" raise exception using errcode = '{sqlstate}', message = 'an odd row'; end $$".encode()
    )
    conn.execute(
        f"create trigger refuse before update on {table} for each row when ({condition})"
        " execute function public.refuse()".encode()
    )


def mend_row(conn: Connection) -> None:
    conn.execute("drop function public.refuse cascade")


@pytest.mark.scale
def test_a_claim_that_fails_is_tried_again(desk: Desk, dsn: str, conn: Connection) -> None:
    add_feature(conn, {1: []}, phase_data='{"prompt_content": "true"}')
    break_row(conn, "public.phase_queue", "23514", "new.status = 'ready'")
    serve = desk.start("serve")
    serve.until("set aside and tried again later: .*an odd row")
    mend_row(conn)
    until(dsn, "bool_and(status = 'completed') from phase_queue")


@pytest.mark.scale
def test_phases_that_wait_for_github_are_released_later(
    desk: Desk, dsn: str, conn: Connection
) -> None:
    """Without [github], which an earlier coordinator had."""
    conn.execute(
        "update pgcoord.control set issues_held_since = now(),"
        " issues_held_until = now() + interval '1 hour', issues_held_reason = 'an outage'"
    )
    break_row(conn, "pgcoord.control", "PC005", "new.issues_held_since is null")
    serve = desk.start("serve")
    serve.until("phases that wait for GitHub are released in")
    add_feature(conn, {1: []}, phase_data='{"prompt_content": "true"}', issue_number=7)
    until(dsn, "bool_and(status = 'completed') from phase_queue")
    mend_row(conn)
    until(dsn, "exists (select from pgcoord.event where kind = 'issues_released')")


@pytest.mark.scale
def test_an_attempt_of_another_host_is_given_up_later(
    desk: Desk, dsn: str, conn: Connection
) -> None:
    feature = add_feature(conn, {1: []}, phase_data='{"workflow_type": "work"}')
    epoch = take_lead(conn)
    [queue_id] = claim(conn, epoch)
    start(conn, epoch, queue_id)
    conn.execute("select pgcoord_private.resign()")
    break_row(conn, "pgcoord.attempt", "P0001", "new.ending = 'lost'")
    serve = desk.start("serve")
    serve.until("leading")
    conn.execute(
        "update pgcoord.coordinator set lead_at = lead_at - pgcoord_private.lease_length()"
    )
    conn.execute("update pgcoord.host set lease_until = clock_timestamp()")
    conn.execute("notify pgcoord_wake")
    serve.until("attempt .* is given up in")
    add_feature(conn, {1: []}, phase_data='{"prompt_content": "true"}')
    until(dsn, f"bool_and(status = 'completed') from phase_queue where feature_id > {feature}")
    mend_row(conn)
    until(dsn, "bool_or(status = 'failed') from phase_queue")
