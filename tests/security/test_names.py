"""Whose names do our functions mean: ours and Postgres's, never a client's of the same name."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import dict_row
from support.database import Connection, add_feature, as_user, one

# Functions, an aggregate and operators that a client may put before those of Postgres. Each leaves
# a trace, where it can, of the user that it ran as.
HOSTILE = """
create table {schema}.seen (who text, what text);
grant insert on {schema}.seen to public;
create function {schema}.format(text, integer, integer) returns text language sql as $$
    insert into {schema}.seen values (current_user, 'format'); select 'boom' $$;
create function {schema}.jsonb_typeof(jsonb) returns text language sql as $$
    insert into {schema}.seen values (current_user, 'jsonb_typeof'); select 'array' $$;
create function {schema}.jsonb_array_length(jsonb) returns integer language sql as $$
    insert into {schema}.seen values (current_user, 'jsonb_array_length'); select 0 $$;
create function {schema}.clock_timestamp() returns timestamptz language sql as $$
    insert into {schema}.seen values (current_user, 'clock_timestamp');
    select now() - interval '1 year' $$;
create function {schema}.pg_notify(text, text) returns void language sql as $$
    insert into {schema}.seen values (current_user, 'pg_notify') $$;
create function {schema}.current_setting(text, boolean) returns text language sql as $$
    insert into {schema}.seen values (current_user, 'current_setting'); select 'boom' $$;
create function {schema}.nextval(text) returns bigint language sql as $$
    insert into {schema}.seen values (current_user, 'nextval'); select 1 $$;
create function {schema}.always(text, text) returns boolean language sql as $$
    insert into {schema}.seen values (current_user, '='); select true $$;
create operator {schema}.= (leftarg = text, rightarg = text, function = {schema}.always);
create operator {schema}.<> (leftarg = text, rightarg = text, function = {schema}.always);
create function {schema}.never(integer, integer) returns boolean language sql as $$
    insert into {schema}.seen values (current_user, 'integer ='); select false $$;
create operator {schema}.= (leftarg = integer, rightarg = integer, function = {schema}.never);
create aggregate {schema}.count(*) (sfunc = int8inc, stype = bigint, initcond = '77');
create aggregate {schema}.bool_and(boolean) (
    sfunc = booland_statefunc, stype = boolean, initcond = 'f');
"""


def test_every_function_has_its_names_pinned(conn: Connection) -> None:
    """By a search path of its own, or by a body that was parsed when it was made."""
    found = conn.execute(
        "select p.oid::regprocedure::text as name from pg_proc as p"
        " where p.pronamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace)"
        " and p.prosqlbody is null"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)"
    ).fetchall()
    assert [row["name"] for row in found] == []


@pytest.fixture(params=["a schema of its own", "public"])
def client(
    request: pytest.FixtureRequest, conn: Connection, dsn: str, logins: dict[str, str]
) -> Iterator[Connection]:
    """A client whose functions of well-known names come before those of Postgres."""
    schema = "public" if request.param == "public" else "mine"
    if schema == "mine":
        conn.execute(f"create schema mine authorization {logins['client']}".encode())
    else:
        conn.execute("grant create on schema public to public")  # as PostgreSQL 14 has it
    with psycopg.connect(
        as_user(dsn, logins["client"]), autocommit=True, row_factory=dict_row
    ) as client:
        client.execute(HOSTILE.replace("{schema}", schema).encode())
        client.execute(f"set search_path = {schema}, pg_catalog, public".encode())
        yield client


def test_a_clients_functions_of_our_names_never_run_and_change_nothing(
    client: Connection, conn: Connection, dsn: str, epoch: int
) -> None:
    feature = add_feature(conn, {1: []})
    client.execute(
        "insert into public.phase_queue (feature_id, phase_number, depends_on_phases)"
        f" values ({feature}, 2, '[1]'), ({feature}, 3, '[2]')".encode()
    )
    with pytest.raises(psycopg.Error) as caught:
        client.execute(
            "insert into public.phase_queue (feature_id, phase_number, depends_on_phases)"
            f" values ({feature}, 4, '\"boom\"')".encode()
        )
    assert caught.value.sqlstate == "PC005"
    client.execute("update public.phase_queue set priority = 10")
    client.execute(f"select * from pgcoord.set_priority('queue-{feature}-2', 20)".encode())
    client.execute(f"select * from pgcoord.skip_phase('queue-{feature}-1', 'not needed')".encode())
    client.execute(f"select * from pgcoord.why('queue-{feature}-3')".encode())
    client.execute(f"select pgcoord.cancel_feature({feature}, 'enough')".encode())
    schema = "mine" if one(conn, "select to_regclass('mine.seen') as t")["t"] else "public"
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as owner:
        # The owner and the coordinator, who have the client's schema in their path, too.
        owner.execute(f"set search_path = {schema}, pg_catalog, public".encode())
        again = add_feature(conn, {})
        owner.execute(
            "insert into public.phase_queue (feature_id, phase_number, depends_on_phases)"
            f" values ({again}, 1, '[]'), ({again}, 2, '[1]')".encode()
        )
        claimed = owner.execute(
            f"select queue_id from pgcoord_private.claim_phases({epoch})".encode()
        ).fetchall()
        assert claimed == [{"queue_id": f"queue-{again}-1"}], "only what may run"
        owner.execute(f"select * from pgcoord.complete_phase('queue-{again}-1')".encode())
        seen = owner.execute(f"select distinct who, what from {schema}.seen".encode()).fetchall()
    assert seen == []
    moved = one(
        conn,
        "select unmet, eligible_at > now() - interval '1 day' as lately"
        f" from public.phase_queue where queue_id = 'queue-{again}-2'",
    )
    assert moved == {"unmet": 0, "lately": True}
