-- Comments on the columns of views, for `\d+`. A column with the name of a table's column gets that column's comment; the
-- others are listed here.

do $$
declare
    v record;
begin
    for i in 1 .. 2 loop    -- a view of a view of a table
        for v in
            select distinct on (shown.attrelid, shown.attnum)
                format('comment on column %s.%I is %L', shown.attrelid::regclass, shown.attname,
                    col_description(stored.attrelid, stored.attnum)) as statement
            from pg_attribute as shown
                join pg_class as view on view.oid = shown.attrelid
                join pg_rewrite as rule on rule.ev_class = view.oid
                join pg_depend as uses on uses.classid = 'pg_rewrite'::regclass and uses.objid = rule.oid
                    and uses.refclassid = 'pg_class'::regclass
                join pg_attribute as stored on stored.attrelid = uses.refobjid and stored.attnum = uses.refobjsubid
            where view.relnamespace in ('pgcoord'::regnamespace, 'pgcoord_private'::regnamespace) and view.relkind = 'v' and shown.attnum > 0
                and stored.attnum > 0 and stored.attrelid <> view.oid and stored.attname = shown.attname
                and stored.atttypid = shown.atttypid
            order by shown.attrelid, shown.attnum, stored.attrelid = 'public.phase_queue'::regclass desc,
                stored.attrelid::regclass::text
        loop
            execute v.statement;
        end loop;
    end loop;
end $$;

comment on column pgcoord.feature.status is
    'planned (nothing claimed yet), in_progress, completed (every phase, at least one) or cancelled.';
comment on column pgcoord.feature.total_phases is 'How many phases it has.';
comment on column pgcoord.feature.phases_completed is 'How many of them are completed.';
comment on column pgcoord.feature.phases_running is 'How many are ready or running.';
comment on column pgcoord.feature.phases_failed is 'How many are failed.';
comment on column pgcoord.feature.phases_blocked is 'How many wait for a failed or cancelled one.';
comment on column pgcoord.feature.started_at is 'When the first of its phases was claimed.';
comment on column pgcoord.feature.finished_at is 'When the last of its phases was completed or cancelled; null before that.';

comment on column pgcoord.board.feature is 'What the feature is called.';
comment on column pgcoord.board.title is 'What the phase is called.';
comment on column pgcoord.board.since is 'When its state began; for one that waits in line, when it became eligible.';
comment on column pgcoord.board.skipped is 'It was taken as completed without being run to its end.';
comment on column pgcoord.board.waiting_for is 'The most decisive reason why it does not run; null where there is nothing to wait for.';

comment on column pgcoord.reasons.queue_id is 'Name of the phase.';
comment on column pgcoord.reasons.feature_id is 'Its feature.';
comment on column pgcoord.reasons.phase_number is 'Its number within the feature.';
comment on column pgcoord.reasons.rank is 'The lower, the more decisive.';
comment on column pgcoord.reasons.kind is
    'Kind of the reason: unrecorded, ending, a status, blocked, missing, prerequisite, retry, paused, coordinator, workflow, github, locked, engine, slot or empty.';
comment on column pgcoord.reasons.words is 'The reason in words.';
comment on column pgcoord.reasons.refers_to is 'What it refers to: a phase, an adw_id, a feature, a workflow.';

comment on column pgcoord_private.first_reason.queue_id is 'Name of the phase.';
comment on column pgcoord_private.first_reason.feature_id is 'Its feature.';
comment on column pgcoord_private.first_reason.phase_number is 'Its number within the feature.';
comment on column pgcoord_private.first_reason.words is 'The most decisive reason in words.';

comment on column pgcoord.waiting.title is 'What the phase is called.';
comment on column pgcoord.waiting.kind is
    'Kind of the reason: blocked, missing, prerequisite, retry, paused, coordinator, workflow, github, locked, engine, slot or empty.';
comment on column pgcoord.waiting.words is 'The reason in words.';

comment on column pgcoord.slots.slot is 'Number of the slot.';
comment on column pgcoord.slots.title is 'What the phase that holds it is called.';
comment on column pgcoord.slots.since is 'When that phase was started, or claimed.';

comment on column pgcoord.pools.pool is 'Name of the pool.';
comment on column pgcoord.pools.slots is 'How many phases may run in it at once.';
comment on column pgcoord.pools.held is 'How many slots are held, draining ones too.';
comment on column pgcoord.pools.draining is 'Slots that go when they are released.';

comment on column pgcoord.timeline.attempt is 'First, second … try; null while there was none.';
comment on column pgcoord.timeline.queued_at is 'When the phase was inserted.';

comment on column pgcoord_private.assignment.attempt_id is 'Number over all attempts.';
comment on column pgcoord_private.assignment.attempt is 'First, second … try at this phase.';
comment on column pgcoord_private.assignment.title is 'What the phase is called; null where it has no title.';
comment on column pgcoord_private.assignment.prompt is 'What its process reads.';
comment on column pgcoord_private.assignment.started is 'Whether its process was recorded as started.';
comment on column pgcoord_private.assignment.ended is 'Whether its outcome is decided: its process may still be there.';
comment on column pgcoord_private.assignment.ended_seconds_ago is 'How long ago it was decided.';

comment on column pgcoord.elsewhere.attempt_id is 'Number over all attempts.';
comment on column pgcoord.elsewhere.left_alone_until is 'When its lease ends, unless its host is heard of before.';

comment on column pgcoord.lock_waits.lock is 'What is locked: feature 5, phase queue-5-1, attempt 12, slot 2, pgcoord.control.';
comment on column pgcoord.lock_waits.holder is 'The process (pid) of the session that has it locked; 0 for a prepared transaction.';
comment on column pgcoord.lock_waits.usename is 'The user of that session.';
comment on column pgcoord.lock_waits.application_name is 'What that session calls itself.';
comment on column pgcoord.lock_waits.since is 'When its transaction began.';
comment on column pgcoord.lock_waits.state is 'What it does, such as idle in transaction.';
comment on column pgcoord.lock_waits.query is 'Its last statement.';

comment on column pgcoord_private.unrecorded_now.queue_id is 'Name of the phase.';
comment on column pgcoord_private.unrecorded_now.words is 'What happened, and who holds it up.';

comment on column pgcoord_private.locked_phase.lock is 'What is locked.';
comment on column pgcoord_private.locked_phase.words is 'Why it cannot be claimed: what is locked, and by whom.';

comment on column pgcoord.changed_definition.missing is 'Whether it is gone, not only changed.';

comment on column pgcoord.queue.skipped is 'It was taken as completed without being run to its end.';
comment on column pgcoord.queue.waiting_for is 'The most decisive reason why it does not run; null where there is nothing to wait for.';

comment on column pgcoord.feature.version is 'Changes with every change of the feature, for who wants to know whether there was one.';

comment on column pgcoord.history.queue_id is 'Phase concerned, by name.';

comment on column pgcoord.leader.epoch is 'The lead in force: claims and starts of any other are refused.';

comment on column pgcoord_private.lead_lock.pid is 'Process of the server; null for a prepared transaction.';
comment on column pgcoord_private.lead_lock.mode is 'ExclusiveLock for the whole, ShareLock for a share.';
comment on column pgcoord_private.lead_lock.virtualtransaction is 'Transaction that holds it, as pg_locks writes it.';
comment on column pgcoord.lead_blocker.pid is 'Process of the server; null for a prepared transaction.';
comment on column pgcoord.lead_blocker.usename is 'Its user.';
comment on column pgcoord.lead_blocker.application_name is 'What it calls itself.';
comment on column pgcoord.lead_blocker.words is 'All that in words.';
comment on column pgcoord.lead_blocker.remedy is 'The statement that ends it.';

comment on column pgcoord_private.next_errand.queue_id is 'The phase whose issue it concerns.';
comment on column pgcoord_private.next_errand.repository is 'Where its issue is: owner/name.';

comment on column pgcoord.usual.workflow is 'The workflow.';
comment on column pgcoord.usual.runs is 'How many of the last thousand attempts were runs of it that completed.';
comment on column pgcoord.usual.low is 'One run in ten took less.';
comment on column pgcoord.usual.median is 'Half of the runs took less.';
comment on column pgcoord.usual.high is 'One run in ten took more.';

comment on column pgcoord_private.stranded.kind is 'missing (a prerequisite does not exist) or workflow (no coordinator knows it).';
comment on column pgcoord_private.stranded.words is 'What is wrong.';
comment on column pgcoord_private.stranded.refers_to is 'Number of the phase, or name of the workflow, that does not exist.';

comment on column pgcoord.attention.kind is
    'failed, missing (a prerequisite does not exist), workflow (nobody knows it), unclaimable (the database refuses its claim), later (given back again and again for an hour), slow (runs much longer than usual) or locked (a lock of somebody''s holds it up).';
comment on column pgcoord.attention.feature is 'What the feature is called.';
comment on column pgcoord.attention.title is 'What the phase is called.';
comment on column pgcoord.attention.since is 'Since when it is so.';
comment on column pgcoord.attention.words is 'What is wrong.';
comment on column pgcoord.attention.blocks is 'Phase numbers of its direct dependents that are blocked.';

comment on column pgcoord.line.feature is 'What the feature is called.';
comment on column pgcoord.line.title is 'What the phase is called.';
comment on column pgcoord.line.pool is 'The pool for whose slots it waits.';

comment on column pgcoord.backlog.in_line is 'Phases that wait for nothing but a slot.';
comment on column pgcoord.backlog.for_phases is 'Phases that wait for others.';
comment on column pgcoord.backlog.paused is 'Phases whose feature is paused.';
comment on column pgcoord.backlog.for_retry is 'Phases that wait for their retry time.';
comment on column pgcoord.backlog.for_approval is 'Phases that ask for approval.';

comment on column pgcoord.gate.question is 'What is asked.';
comment on column pgcoord.gate.asked_at is 'When its last prerequisite was completed.';

comment on column pgcoord.feature.cost_usd is 'What the results of its attempts say that they cost, in US dollars.';
comment on column pgcoord.feature.tokens_in is 'Tokens that its attempts read, as their results say.';
comment on column pgcoord.feature.tokens_out is 'Tokens that its attempts wrote, as their results say.';
comment on column pgcoord.board.result is 'The result of its latest attempt.';
comment on column pgcoord.queue.result is 'The result of its latest attempt.';
comment on column pgcoord.results.attempt is 'First, second … attempt at the phase.';
comment on column pgcoord.results.summary is 'What was done, in its own words.';
comment on column pgcoord.results.branch is 'The branch with its work.';
comment on column pgcoord.results.commit is 'The commit with its work.';
comment on column pgcoord.results.pr_number is 'The pull request with its work.';
comment on column pgcoord.results.url is 'Where its work can be seen.';
comment on column pgcoord.results.result is 'The whole object.';
comment on column pgcoord.costs.attempts is 'Attempts with a result.';
comment on column pgcoord.costs.cost_usd is 'Their cost in US dollars.';
comment on column pgcoord.costs.tokens_in is 'Tokens that they read.';
comment on column pgcoord.costs.tokens_out is 'Tokens that they wrote.';
comment on column pgcoord.feature.max_cost_usd is 'What it may cost, in US dollars: once that is spent it is paused.';

comment on column pgcoord.schedules.title is 'What the feature that it queues is called.';
comment on column pgcoord.schedules.phases is 'How many phases that has.';
comment on column pgcoord.schedules.last_due_at is 'The latest due time that was taken.';
comment on column pgcoord.schedules.last_outcome is 'What became of that: started, waiting, skipped, missed or failed.';
comment on column pgcoord.schedules.last_reason is 'Why, in words.';
comment on column pgcoord.schedules.last_feature_id is 'The latest feature that it has queued.';
comment on column pgcoord.schedules.last_status is 'How that stands.';
