-- Checkup: the faults of this installation that the database can see. `pgcoord doctor` adds the others: whether
-- notifications arrive, the clock and the disk of a machine. One function for each kind, which returns one row; fail means
-- that work cannot proceed or a rule is disabled, warn that somebody should look.

-- Functions, views and triggers of pgcoord as they are now, each with the digest of its definition.
-- The definitions that upgrades write. The search path is fixed, for the server qualifies names by it.
create or replace function pgcoord_private.definitions() returns table (name text, digest text)
language sql stable
set search_path = pg_catalog, pg_temp
-- What a definition looks like depends on these: a constant is shown in the session's time zone, say.
set timezone = 'UTC' set datestyle = 'ISO, MDY' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex'
set quote_all_identifiers = off set standard_conforming_strings = on as $$
    select 'function ' || p.oid::regprocedure, md5(pg_get_functiondef(p.oid))
    from pg_proc as p
    where p.pronamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace) and p.prokind = 'f'
    union all
    select 'view ' || c.oid::regclass, md5(pg_get_viewdef(c.oid))
    from pg_class as c
    where c.relnamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace) and c.relkind = 'v'
    union all
    -- tgenabled: a disabled trigger counts as changed.
    select format('trigger %s on %s', t.tgname, t.tgrelid::regclass), md5(t.tgenabled::text || pg_get_triggerdef(t.oid))
    from pg_trigger as t
        join pg_proc as p on p.oid = t.tgfoid
    where p.pronamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace);
$$;

-- For upgrade: record the present definitions as the shipped ones.
create or replace function pgcoord_private.record_definitions() returns void
language sql
set search_path = pg_catalog, pg_temp as $$
    delete from pgcoord.shipped;
    insert into pgcoord.shipped (name, digest) select name, digest from pgcoord_private.definitions();
$$;

create or replace view pgcoord.changed_definition as
select s.name, d.name is null as missing
from pgcoord.shipped as s
    left join pgcoord_private.definitions() as d using (name)
where d.digest is distinct from s.digest
order by s.name;
comment on view pgcoord.changed_definition is
    'Functions, views and triggers that differ from the last upgrade: changed, disabled, or missing.';

-- Checkup: are the rules those that were shipped?
create or replace function pgcoord_private.checkup_definitions() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'definitions', case when count(c.name) = 0 then 'ok' else 'fail' end,
        case when count(c.name) = 0
            then format('functions, views and triggers are as the upgrade to %s left them', max(m.release))
            else format('changed since the upgrade to %s: %s', max(m.release), pgcoord_private.some_of(array_agg(c.name order by c.name)))
        end,
        case when count(c.name) > 0 then '''pgcoord upgrade'' writes them anew' end
    from pgcoord.migration as m
        left join pgcoord.changed_definition as c on true
    where m.name = 'functions';
$$;

-- Checkup: what may the current user do, and may anybody create in public?
create or replace function pgcoord_private.checkup_rights() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    with permission (ordinal, may, allowed) as (
        values
            (1, 'watch', has_table_privilege('pgcoord.board', 'select') and has_table_privilege('pgcoord.event', 'select')),
            (2, 'bring work in', has_any_column_privilege('public.planned_features', 'insert')
                and has_any_column_privilege('public.phase_queue', 'insert')),
            (3, 'steer', (
                select bool_and(has_function_privilege(oid, 'execute')) from pg_proc
                where pronamespace = 'pgcoord'::regnamespace and proname in ('retry_phase', 'cancel_phase', 'pause', 'set_slots')
            )),
            (4, 'coordinate', has_table_privilege('pgcoord_private.assignment', 'select') and (
                select bool_and(has_function_privilege(oid, 'execute')) from pg_proc
                where pronamespace = 'pgcoord_private'::regnamespace and proname in ('lead', 'claim_phases', 'start_phase', 'end_attempt')
            ))
    )
    select 'rights', case when not bool_or(allowed) then 'fail' when open.to_all then 'warn' else 'ok' end,
        concat(current_user, coalesce(' may ' || string_agg(may, ', ' order by ordinal) filter (where allowed), ''),
            '; may not ' || string_agg(may, ', ' order by ordinal) filter (where not allowed),
            case when open.to_all then '; anybody may create in the schema public' end),
        case when not bool_or(allowed) then 'grant it pgcoord_reader, pgcoord_client or pgcoord_coordinator'
            when open.to_all then 'revoke create on schema public from public: what is created there may pass for something else' end
    from permission,
        (
            select exists (
                select from pg_namespace as n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) as a
                where n.nspname = 'public' and a.grantee = 0 and a.privilege_type = 'CREATE'
            ) as to_all
        ) as open
    group by open.to_all;
$$;

-- Checkup: does a coordinator lead, and is it of the schema's release?
create or replace function pgcoord_private.checkup_coordinator() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'coordinator',
        case when l.epoch is null and (work.waits or b.words is not null) then 'fail' when l.epoch is null or l.outdated then 'warn' else 'ok' end,
        case when b.words is not null then 'no coordinator leads: ' || b.words
            when l.epoch is null then 'no coordinator runs' || case when work.waits then ', and there is work' else '' end
            else format('process %s on %s leads since %s, %s', l.pid, l.host, to_char(l.lead_at, 'YYYY-MM-DD HH24:MI:SS TZ'),
                    pgcoord_private.counted(sessions.n - 1, 'stands by', 'stand by'))
                || case when l.outdated then format('; it is of release %s, the schema is of another', l.version) else '' end
        end,
        case when b.words is not null then 'end it: ' || b.remedy
            when l.epoch is null then 'start one: ''pgcoord serve''' when l.outdated then 'restart it with the release of the schema' end
    from (
            select exists (select from pgcoord_private.claimable)
                or exists (select from pgcoord.attempt where ended_at is null and not external) as waits
        ) as work
        cross join (
            select greatest(count(*), 1) as n from pg_stat_activity
            where datname = current_database() and application_name = 'pgcoord listener'    -- a coordinator's
        ) as sessions
        left join (
            select l.*, m.at > l.lead_at and m.release <> l.version as outdated
            from pgcoord.leader as l
                join pgcoord.migration as m on m.name = 'functions'
        ) as l on true
        left join pgcoord.lead_blocker as b on l.epoch is null;
$$;

-- Checkup: is there a slot at all, and is everything paused?
create or replace function pgcoord_private.checkup_slots() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'slots', case when c.paused_at is not null or s.total = 0 then 'warn' else 'ok' end,
        case when c.paused_at is not null
            then format('everything is paused since %s%s', to_char(c.paused_at, 'YYYY-MM-DD HH24:MI:SS TZ'), ': ' || c.paused_reason)
            when s.total = 0 then 'there is none: no phase can start'
            else format('%s of %s', s.held, pgcoord_private.counted(s.total, 'slot is held', 'slots are held'))
        end,
        case when c.paused_at is not null then '''pgcoord resume''' when s.total = 0 then '''pgcoord slots 3''' end
    from pgcoord.control as c,
        (select count(*) filter (where not draining) as total, count(queue_id) as held from pgcoord.slots) as s;
$$;

-- Checkup: is everything claimed that could be?
-- A phase that is eligible while a slot is free is claimed within milliseconds; otherwise it is stuck.
create or replace function pgcoord_private.checkup_line() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'line', case when line.stuck then 'fail' when refused.n > 0 then 'warn' else 'ok' end,
        case when line.stuck then format('%s, the first for %s, though a slot is free',
                pgcoord_private.counted(line.n, 'phase waits', 'phases wait'), pgcoord_private.in_words(line.longest))
            when refused.n > 0 then format('the database refuses the claim of %s: %s', pgcoord_private.some_of(refused.names), refused.error)
            when line.n > 0 then pgcoord_private.counted(line.n, 'phase waits', 'phases wait') || ' for a slot'
            else 'no phase waits for a slot'
        end,
        case when line.stuck then 'end what locks it (see transactions); else restart the coordinator, and keep its log'
            when refused.n > 0 then 'the coordinator tries again by itself: look at the data of the phase, and at triggers of yours on phase_queue' end
    from (
        select count(*) as n, max(clock_timestamp() - p.eligible_at) as longest,
            coalesce(bool_or(greatest(p.eligible_at, p.updated_at, l.lead_at) < clock_timestamp() - interval '10 s'
                    and w.pool in (select f.pool from pgcoord_private.free_slot as f where not f.draining)), false)
                and exists (select from pgcoord.leader)
                and exists (select from pgcoord.control where paused_at is null) as stuck
        from pgcoord_private.claimable as p
            left join pgcoord.leader as l on true
            left join pgcoord_private.workflow_line as w on w.line = coalesce(p.workflow_type, '')
        where not exists (select from pgcoord_private.stranded as s where s.queue_id = p.queue_id and s.kind = 'workflow')
            and p.queue_id <> all (array(select queue_id from pgcoord.unclaimable))
    ) as line
        cross join (
            select count(*) as n, array_agg(u.queue_id order by u.since) as names,
                split_part((array_agg(u.error order by u.since))[1], e'\n', 1) as error
            from pgcoord.unclaimable as u
                join public.phase_queue as p on p.queue_id = u.queue_id and p.status = 'queued'
        ) as refused;
$$;

-- Checkup: are failed phases tried again in time?
create or replace function pgcoord_private.checkup_retries() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'retries', case when r.late then 'fail' else 'ok' end,
        case when r.n = 0 then 'no phase waits for its next attempt'
            else format('%s for another attempt, the first %s', pgcoord_private.counted(r.n, 'phase waits', 'phases wait'),
                case when r.due_in > interval '0' then 'in ' || pgcoord_private.in_words(r.due_in)
                    else 'overdue for ' || pgcoord_private.in_words(-r.due_in) end)
        end,
        case when r.late then 'end what locks it (see transactions); else restart the coordinator, and keep its log' end
    from (
        select count(*) as n, min(p.retry_at) filter (where isfinite(p.retry_at)) - clock_timestamp() as due_in,
            coalesce(min(p.retry_at) < clock_timestamp() - interval '10 s', false)
                and exists (select from pgcoord.leader where lead_at < clock_timestamp() - interval '10 s') as late
        from public.phase_queue as p where p.retry_at is not null
    ) as r;
$$;

-- Checkup: are there phases whose workflow no coordinator knows?
create or replace function pgcoord_private.checkup_workflows() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'workflows', case when n = 0 then 'ok' else 'warn' end,
        case when n = 0 then 'every phase has one that a coordinator can run'
            else format('%s one that no coordinator knows: %s', pgcoord_private.counted(n, 'phase has', 'phases have'), pgcoord_private.some_of(names))
        end,
        case when n > 0 then 'declare it in pgcoord.toml and SIGHUP or restart the coordinator, or ''pgcoord cancel'' the phase' end
    from (
        select count(*) as n, array_agg(
                format('%s (%s)', queue_id, coalesce(refers_to, 'none, and there is no default'))
                order by feature_id, phase_number) as names
        from pgcoord_private.stranded
        where kind = 'workflow'
    ) as unknown;
$$;

-- Checkup: do phases wait for others that do not exist?
create or replace function pgcoord_private.checkup_prerequisites() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'prerequisites', case when n = 0 then 'ok' else 'warn' end,
        case when n = 0 then 'every phase that another one waits for exists'
            else format('%s for a phase that does not exist: %s', pgcoord_private.counted(n, 'phase waits', 'phases wait'), pgcoord_private.some_of(names))
        end,
        case when n > 0 then 'insert the missing phase, or take its number out of depends_on_phases' end
    from (
        select count(*) as n, array_agg(
                format('%s (for phase %s)', queue_id, refers_to) order by feature_id, phase_number, refers_to::integer) as names
        from pgcoord_private.stranded
        where kind = 'missing'
    ) as missing;
$$;

-- Checkup: are there processes that no coordinator looks after, or phases that are claimed and not started?
-- (And attempts that no claim has made: nothing runs them.)
-- Only a coordinator on the same machine can watch the process of an attempt: the leader, or one that stands by and renews a
-- lease. Without either the attempt is lost after a while, though its process may still run. Jobs of engines belong to no
-- machine: the leader watches them, and they may wait there for any time.
create or replace function pgcoord_private.checkup_attempts() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'attempts', case when o.n = 0 and late.n = 0 and stray.n = 0 then 'ok' when o.holds_slot then 'fail' else 'warn' end,
        case when stray.n > 0 then format('%s no phase holds: %s', pgcoord_private.counted(stray.n, 'attempt was inserted by hand, and',
                'attempts were inserted by hand, and'), pgcoord_private.some_of(stray.names))
            when o.n > 0 then format('%s no coordinator on the same machine: %s',
                pgcoord_private.counted(o.n, 'process has', 'processes have'), pgcoord_private.some_of(o.names))
            when late.n > 0 then format('%s claimed, and not started: %s',
                pgcoord_private.counted(late.n, 'phase is', 'phases are'), pgcoord_private.some_of(late.names))
            else 'every process has a coordinator on its machine'
        end,
        case when stray.n > 0 then format('delete from pgcoord.attempt where id = %s', stray.first_id)
            when o.n > 0 then format(
                'start ''pgcoord serve'' there; where it is gone for good: select pgcoord.give_up_attempt(%s, ''lost'', ''its machine is gone'')',
                o.first_id)
            when late.n > 0 then 'the log of the coordinator says what it waits for: room on the disk (see disk), processes, a lock (see locks)' end
    from (
            select count(*) as n, bool_or(a.ended_at is null) as holds_slot,
                array_agg(a.queue_id || coalesce(' on ' || a.host, '') order by a.id) as names, min(a.id) as first_id
            from pgcoord.attempt as a
            where a.exited_at is null and not a.external
                and not exists (select from pgcoord.leader as l where a.host is null or l.host = a.host)
                and not exists (select from pgcoord.host as h where h.name = a.host and h.lease_until > clock_timestamp())
        ) as o
        cross join (
            select count(*) as n, array_agg(
                    format('%s for %s', a.queue_id, pgcoord_private.in_words(clock_timestamp() - a.claimed_at)) order by a.id) as names
            from pgcoord.attempt as a
            where a.started_at is null and a.ended_at is null and a.exited_at is null and not a.external
                and a.host is not null and a.claimed_at < clock_timestamp() - interval '30 s'
        ) as late
        cross join (
            select count(*) as n, min(a.id) as first_id,
                array_agg(format('attempt %s of %s', a.number, a.queue_id) order by a.id) as names
            from pgcoord.attempt as a join public.phase_queue as p using (queue_id)
            where a.ended_at is null and (p.slot is null or p.attempt <> a.number)
        ) as stray;
$$;

-- Checkup: are there phases that were inserted as running, which only a report ends?
create or replace function pgcoord_private.checkup_external() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'external', case when n = 0 then 'ok' else 'warn' end,
        case when n = 0 then 'no phase runs unsupervised'
            else format('%s unsupervised, as it was inserted: %s', pgcoord_private.counted(n, 'phase runs', 'phases run'), pgcoord_private.some_of(names))
        end,
        case when n > 0 then format('only a report ends it, such as: select pgcoord.complete_phase(%L)', first_id) end
    from (
        select count(*) as n, min(a.queue_id) as first_id, array_agg(
                format('%s since %s', a.queue_id, pgcoord_private.in_words(clock_timestamp() - a.claimed_at)) order by a.id) as names
        from pgcoord.attempt as a
        where a.ended_at is null and a.external
    ) as external;
$$;

-- Checkup: does a process write nothing for longer than its workflow says is usual?
create or replace function pgcoord_private.checkup_quiet() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'quiet', case when n = 0 then 'ok' else 'warn' end,
        case when n = 0 then 'no phase is quiet for longer than its workflow says'
            else format('%s quiet: %s', pgcoord_private.counted(n, 'phase is', 'phases are'), pgcoord_private.some_of(names)) end,
        case when n > 0 then 'it may wait for a person or for the network: ''pgcoord logs'' shows its last words, ''pgcoord cancel'' ends it' end
    from (
        select count(*) as n, array_agg(
                format('%s for %s', a.queue_id, pgcoord_private.in_words(clock_timestamp() - a.quiet_since)) order by a.id) as names
        from pgcoord.attempt as a
        where a.quiet_since is not null and a.exited_at is null and a.ended_at is null
    ) as quiet;
$$;

-- Checkup: are there transactions that lock phases, or hold vacuum back?
-- A minute with a lock on our rows holds up claims; ten minutes of any kind keep vacuum from removing dead rows.
create or replace function pgcoord_private.checkup_transactions() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    with open_transaction (words, since, locks, ending) as (
        select format('process %s of %s is in a transaction', a.pid, a.usename), a.xact_start, exists (
                select from pg_locks as l
                where l.pid = a.pid and l.granted and l.mode <> 'AccessShareLock'
                    and l.relation in ('public.phase_queue'::regclass, 'public.planned_features'::regclass, 'pgcoord.control'::regclass)
            ), format('select pg_terminate_backend(%s)', a.pid)
        from pg_stat_activity as a
        where a.datname = current_database() and a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
        union all
        select format('transaction %L of %s is prepared', x.gid, x.owner), x.prepared, exists (
                select from pg_locks as t
                    join pg_locks as l on l.pid is null and l.virtualtransaction = t.virtualtransaction
                where t.locktype = 'transactionid' and t.transactionid = x.transaction and l.mode <> 'AccessShareLock'
                    and l.relation in ('public.phase_queue'::regclass, 'public.planned_features'::regclass, 'pgcoord.control'::regclass)
            ), format('rollback prepared %L', x.gid)
        from pg_prepared_xacts as x
        where x.database = current_database()
    )
    select 'transactions', case when count(t.words) = 0 and r.sees_all then 'ok' else 'warn' end,
        case when count(t.words) > 0 then pgcoord_private.some_of(array_agg(format('%s for %s%s', t.words,
                    pgcoord_private.in_words(clock_timestamp() - t.since), case when t.locks then ', with locks on the queue' else '' end)
                order by t.since))
            when r.sees_all then 'none is open for long'
            else format('%s cannot see those of other users', current_user)
        end,
        case when count(t.words) > 0 then 'end it, or: ' || (array_agg(t.ending order by t.since))[1]
            when not r.sees_all then format('grant pg_read_all_stats to %I', current_user) end
    from (select pg_has_role('pg_read_all_stats', 'usage') as sees_all) as r
        left join open_transaction as t
            on t.since < clock_timestamp() - case when t.locks then interval '1 min' else interval '10 min' end
    group by r.sees_all;
$$;

-- Checkup: does a coordinator wait for locks that somebody holds?
create or replace function pgcoord_private.checkup_locks() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    with holder as (
        select pgcoord_private.holder_ending(w.holder, w.query) as ending, min(w.since) as since,
            min(pgcoord_private.held_by(w.lock)) as words, array_agg(distinct w.lock) as locks
        from pgcoord_private.find_lock_waits() as w
        group by 1
    )
    select 'locks', case when h.words is null and u.n = 0 then 'ok' else 'warn' end,
        case when h.words is null and u.n = 0 then 'no coordinator waits for a lock'
            else concat_ws('; ',
                case when u.n > 0 then format('what the process did cannot be recorded yet: %s', pgcoord_private.some_of(u.names))
                    || coalesce(': ' || u.error, '') end,
                h.words)
        end,
        case when h.words is not null then 'end that transaction, or: ' || h.ending
            when u.error is not null then 'it is tried again by itself: look at triggers of yours on phase_queue and on the tables of pgcoord'
            when u.n > 0 then 'a coordinator on the same machine records it once it runs: ''pgcoord serve''' end
    from (
            select string_agg(format('%s is held by %s', pgcoord_private.some_of(locks), words), '; ' order by since) as words,
                (array_agg(ending order by since))[1] as ending
            from holder
        ) as h
        cross join (
            select count(*) as n, array_agg(queue_id order by since) as names,
                split_part(substr(min(lock) filter (where lock like 'error: %'), 8), e'\n', 1) as error
            from pgcoord_private.unrecorded_now
        ) as u;
$$;

-- Checkup: is the queue of notifications emptied? When it is full, no change can be committed.
create or replace function pgcoord_private.checkup_notifications() returns setof pgcoord.finding
language sql volatile
set search_path = pg_catalog, pg_temp as $$
    select 'notifications', case when usage < 0.1 then 'ok' when usage < 0.5 then 'warn' else 'fail' end,
        format('the server''s queue of notifications is %s %% full', round(100 * usage)),
        case when usage >= 0.1 then 'a session that listens is in a transaction for long: end it (see transactions, of all databases)' end
    from (select pg_notification_queue_usage()::numeric as usage) as queue;
$$;

-- Checkup: does a subscription write into our tables? Its writes fire no trigger, so a phase has no edges and wakes no
-- coordinator; constraints refuse most rows, and the subscription retries for ever. A copy of all tables for reading is
-- fine.
create or replace function pgcoord_private.checkup_replication() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'replication', case when count(*) > 0 then 'fail' else 'ok' end,
        case when count(*) > 0 then format('a subscription replicates into %s, past the triggers: nothing of it is run here',
                string_agg(distinct c.relname, ' and '))
            else 'no subscription writes past the triggers' end,
        case when count(*) > 0
            then 'leave a copy as it is, to be read; to bring work in, replicate into a table of your own, of which a trigger with '
                '''enable always'' and session_replication_role = origin inserts into phase_queue' end
    from pg_subscription_rel as r join pg_class as c on c.oid = r.srrelid
    where c.oid in ('public.planned_features'::regclass, 'public.phase_queue'::regclass);
$$;

-- Checkup: are there phases that say nothing of what is to be done?
create or replace function pgcoord_private.checkup_empty() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'empty', case when count(*) > 0 then 'warn' else 'ok' end,
        case when count(*) > 0 then format('%s neither title nor prompt: %s',
                pgcoord_private.counted(count(*), 'phase that waits has', 'phases that wait have'),
                pgcoord_private.some_of(array_agg(queue_id order by feature_id, phase_number)))
            else 'each phase that waits says what is to be done' end,
        case when count(*) > 0
            then 'was phase_data lost on the way? Update it, or cancel them; needs_prompt = true of a workflow refuses such phases' end
    from public.phase_queue as p
    where p.status in ('queued', 'blocked') and pg_column_size(p.phase_data) < 1000 and pgcoord_private.is_empty(p.phase_data);
$$;

-- Checkup: does GitHub make issues, and take comments on how their phases ended?
create or replace function pgcoord_private.checkup_issues() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'issues', case when c.issues_held_since is not null or failing > 0 then 'warn' else 'ok' end,
        case when c.issues_held_since is not null then format('GitHub makes no issues for %s: %s',
                pgcoord_private.in_words(clock_timestamp() - c.issues_held_since), c.issues_held_reason)
            when failing > 0 then format('%s the comment that its phase ended: %s',
                pgcoord_private.counted(failing, 'issue lacks', 'issues lack'), pgcoord_private.some_of(names))
            else 'nothing that concerns GitHub is late'
        end,
        case when c.issues_held_since is not null then 'phases that have no issue yet wait; the coordinator tries again by itself'
            when failing > 0 then 'select * from pgcoord.errand shows the error; each try waits twice as long as the one before' end
    from pgcoord.control as c
        cross join (
            select count(*) as failing, array_agg(format('%s (%s)', queue_id, error) order by id) as names
            from pgcoord.errand where error is not null
        ) as late;
$$;

-- Checkup: can every schedule run, and does it in time?
create or replace function pgcoord_private.checkup_schedules() returns setof pgcoord.finding
language sql stable
set search_path = pg_catalog, pg_temp as $$
    select 'schedules', case when late.names is not null then 'fail' when faulty.names is not null then 'warn' else 'ok' end,
        case when late.names is not null then 'due for a minute and not started: ' || pgcoord_private.some_of(late.names)
            when faulty.names is not null then pgcoord_private.some_of(faulty.names)
            when c.n = 0 then 'there are none'
            else pgcoord_private.counted(c.n, 'schedule has a time and a feature', 'schedules have a time and a feature') end,
        case when late.names is not null then 'end what locks it (see transactions); else restart the coordinator, and keep its log'
            when faulty.names is not null then '''pgcoord schedule change NAME'' gives it other times, or another feature; what pgcoord.toml declares is mended there, then SIGHUP to ''pgcoord serve''' end
    from (select count(*) as n from pgcoord.schedule) as c
        cross join (
            select array_agg(format('schedule %s%s', f.name, f.words) order by f.name) as names
            from (
                select name, ': ' || error as words from pgcoord.schedule where error is not null
                union all
                select name, ' of pgcoord.toml is not stored: ' || error from pgcoord.refused_schedule
            ) as f
        ) as faulty
        cross join (
            select array_agg(s.name order by s.name) as names from pgcoord.schedule as s
                join pgcoord.leader as l on l.lead_at < clock_timestamp() - interval '1 min'
            where s.paused_at is null and s.next_at < clock_timestamp() - interval '1 min'
        ) as late;
$$;

create or replace function pgcoord.checkup() returns setof pgcoord.finding
language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    return query select * from pgcoord_private.checkup_definitions();
    if exists (select from pgcoord.changed_definition where missing) then
        return;    -- the remaining checks may read objects that do not exist
    end if;
    return query select * from pgcoord_private.checkup_rights();
    return query select * from pgcoord_private.checkup_coordinator();
    return query select * from pgcoord_private.checkup_slots();
    return query select * from pgcoord_private.checkup_line();
    return query select * from pgcoord_private.checkup_retries();
    return query select * from pgcoord_private.checkup_workflows();
    return query select * from pgcoord_private.checkup_prerequisites();
    return query select * from pgcoord_private.checkup_attempts();
    return query select * from pgcoord_private.checkup_external();
    return query select * from pgcoord_private.checkup_quiet();
    return query select * from pgcoord_private.checkup_empty();
    return query select * from pgcoord_private.checkup_replication();
    return query select * from pgcoord_private.checkup_schedules();
    return query select * from pgcoord_private.checkup_issues();
    return query select * from pgcoord_private.checkup_locks();
    return query select * from pgcoord_private.checkup_transactions();
    return query select * from pgcoord_private.checkup_notifications();
end $$;
comment on function pgcoord.checkup() is
    'Checks of this installation: a row for each kind, with its level (ok, warn, fail), the finding and the remedy. pgcoord doctor shows these, and checks that SQL cannot do.';
