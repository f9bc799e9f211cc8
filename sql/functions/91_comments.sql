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
comment on column pgcoord.feature.total_phases is 'Number of its phases.';
comment on column pgcoord.feature.phases_completed is 'Number of completed phases.';
comment on column pgcoord.feature.phases_running is 'Number of ready or running phases.';
comment on column pgcoord.feature.phases_failed is 'Number of failed phases.';
comment on column pgcoord.feature.phases_blocked is 'Number of blocked phases.';
comment on column pgcoord.feature.started_at is 'When the first of its phases was claimed.';
comment on column pgcoord.feature.finished_at is 'When the last of its phases was completed or cancelled; null before that.';

comment on column pgcoord.board.feature is 'Title of the feature.';
comment on column pgcoord.board.title is 'Title of the phase.';
comment on column pgcoord.board.since is 'Time at which its state began; for a phase in the queue, at which it became eligible.';
comment on column pgcoord.board.skipped is 'Whether it was marked as completed without being run to its end.';
comment on column pgcoord.board.waiting_for is 'The most decisive reason why it does not run; null if it does not wait.';

comment on column pgcoord.reasons.queue_id is 'Name of the phase.';
comment on column pgcoord.reasons.feature_id is 'Its feature.';
comment on column pgcoord.reasons.phase_number is 'Its number within the feature.';
comment on column pgcoord.reasons.rank is 'The lower, the more decisive.';
comment on column pgcoord.reasons.kind is
    'Kind of the reason: unrecorded, ending, a status, blocked, missing, prerequisite, retry, paused, coordinator, workflow, github, locked, engine, slot or empty.';
comment on column pgcoord.reasons.words is 'The reason in words.';
comment on column pgcoord.reasons.refers_to is 'The object that it refers to: a phase, an adw_id, a feature, a workflow.';

comment on column pgcoord_private.first_reason.queue_id is 'Name of the phase.';
comment on column pgcoord_private.first_reason.feature_id is 'Its feature.';
comment on column pgcoord_private.first_reason.phase_number is 'Its number within the feature.';
comment on column pgcoord_private.first_reason.words is 'The most decisive reason in words.';

comment on column pgcoord.waiting.title is 'Title of the phase.';
comment on column pgcoord.waiting.kind is
    'Kind of the reason: blocked, missing, prerequisite, retry, paused, coordinator, workflow, github, locked, engine, slot or empty.';
comment on column pgcoord.waiting.words is 'The reason in words.';

comment on column pgcoord.slots.slot is 'Number of the slot.';
comment on column pgcoord.slots.title is 'Title of the phase that holds it.';
comment on column pgcoord.slots.since is 'When that phase was started, or claimed.';

comment on column pgcoord.pools.pool is 'Name of the pool.';
comment on column pgcoord.pools.slots is 'Number of phases that may run in it at once.';
comment on column pgcoord.pools.held is 'Number of held slots, including draining ones.';
comment on column pgcoord.pools.draining is 'Slots that are deleted when they are released.';

comment on column pgcoord.timeline.attempt is 'Number of the latest attempt, from 1; null if there was none.';
comment on column pgcoord.timeline.queued_at is 'When the phase was inserted.';

comment on column pgcoord_private.assignment.attempt_id is 'Number over all attempts.';
comment on column pgcoord_private.assignment.attempt is 'Number of the attempt at this phase, from 1.';
comment on column pgcoord_private.assignment.title is 'Title of the phase; null if it has none.';
comment on column pgcoord_private.assignment.prompt is 'Prompt of the phase.';
comment on column pgcoord_private.assignment.started is 'Whether its process was recorded as started.';
comment on column pgcoord_private.assignment.ended is 'Whether its outcome is decided; its process may still run.';
comment on column pgcoord_private.assignment.ended_seconds_ago is 'Time since it was decided.';

comment on column pgcoord.elsewhere.attempt_id is 'Number over all attempts.';
comment on column pgcoord.elsewhere.left_alone_until is 'Time at which its lease ends, unless its host renews it.';

comment on column pgcoord.lock_waits.lock is 'The locked row: feature 5, phase queue-5-1, attempt 12, slot 2, pgcoord.control.';
comment on column pgcoord.lock_waits.holder is 'The process (pid) of the session that holds the lock; 0 for a prepared transaction.';
comment on column pgcoord.lock_waits.usename is 'The user of that session.';
comment on column pgcoord.lock_waits.application_name is 'application_name of that session.';
comment on column pgcoord.lock_waits.since is 'When its transaction began.';
comment on column pgcoord.lock_waits.state is 'Its state, such as idle in transaction.';
comment on column pgcoord.lock_waits.query is 'Its last statement.';

comment on column pgcoord_private.unrecorded_now.queue_id is 'Name of the phase.';
comment on column pgcoord_private.unrecorded_now.words is 'The event, and the session that holds the lock.';

comment on column pgcoord_private.locked_phase.lock is 'The locked row.';
comment on column pgcoord_private.locked_phase.words is 'Why it cannot be claimed: the locked row, and the session.';

comment on column pgcoord.changed_definition.missing is 'Whether it is missing, not only changed.';

comment on column pgcoord.queue.skipped is 'Whether it was marked as completed without being run to its end.';
comment on column pgcoord.queue.waiting_for is 'The most decisive reason why it does not run; null if it does not wait.';

comment on column pgcoord.feature.version is 'A text that changes with every change of the feature; change_feature compares it.';

comment on column pgcoord.history.queue_id is 'Phase concerned, by name.';

comment on column pgcoord.leader.epoch is 'The lead in force: claims and starts of any other are refused.';

comment on column pgcoord_private.lead_lock.pid is 'Process of the server; null for a prepared transaction.';
comment on column pgcoord_private.lead_lock.mode is 'ExclusiveLock for the whole, ShareLock for a share.';
comment on column pgcoord_private.lead_lock.virtualtransaction is 'Transaction that holds it, as pg_locks writes it.';
comment on column pgcoord.lead_blocker.pid is 'Process of the server; null for a prepared transaction.';
comment on column pgcoord.lead_blocker.usename is 'Its user.';
comment on column pgcoord.lead_blocker.application_name is 'Its application_name.';
comment on column pgcoord.lead_blocker.words is 'These columns in words.';
comment on column pgcoord.lead_blocker.remedy is 'The statement that ends it.';

comment on column pgcoord_private.next_errand.queue_id is 'The phase whose issue it concerns.';
comment on column pgcoord_private.next_errand.repository is 'Repository of its issue: owner/name.';

comment on column pgcoord.usual.workflow is 'The workflow.';
comment on column pgcoord.usual.runs is 'Number of its completed runs among the last thousand attempts.';
comment on column pgcoord.usual.low is 'One run in ten took less.';
comment on column pgcoord.usual.median is 'Half of the runs took less.';
comment on column pgcoord.usual.high is 'One run in ten took more.';

comment on column pgcoord_private.stranded.kind is 'missing (a prerequisite does not exist) or workflow (no coordinator knows it).';
comment on column pgcoord_private.stranded.words is 'The fault, in words.';
comment on column pgcoord_private.stranded.refers_to is 'Number of the phase, or name of the workflow, that does not exist.';

-- (Listed, since the loop would find the text above only in the next run.)
comment on column pgcoord_private.standstill.words is 'The phases that need a person, with their faults.';

comment on column pgcoord.attention.kind is
    'failed, missing (a prerequisite does not exist), workflow (no coordinator knows it), unclaimable (the database refuses its claim), later (returned again and again for an hour), slow (runs much longer than usual) or locked (another session''s lock delays it).';
comment on column pgcoord.attention.feature is 'Title of the feature.';
comment on column pgcoord.attention.title is 'Title of the phase.';
comment on column pgcoord.attention.since is 'Time at which that began.';
comment on column pgcoord.attention.words is 'The fault, in words.';
comment on column pgcoord.attention.blocks is 'Phase numbers of its direct dependents that are blocked.';

comment on column pgcoord.line.feature is 'Title of the feature.';
comment on column pgcoord.line.title is 'Title of the phase.';
comment on column pgcoord.line.pool is 'The pool for whose slots it waits.';

comment on column pgcoord.backlog.in_line is 'Number of phases that wait only for a slot.';
comment on column pgcoord.backlog.for_phases is 'Number of phases that wait for other phases.';
comment on column pgcoord.backlog.paused is 'Number of phases whose feature is paused.';
comment on column pgcoord.backlog.for_retry is 'Number of phases that wait for their retry time.';
comment on column pgcoord.backlog.for_approval is 'Number of phases that wait for approval.';

comment on column pgcoord.gate.question is 'The question.';
comment on column pgcoord.gate.asked_at is 'Time at which its last prerequisite was completed.';

comment on column pgcoord.feature.cost_usd is 'Cost of its attempts in US dollars, from their results.';
comment on column pgcoord.feature.tokens_in is 'Input tokens of its attempts, from their results.';
comment on column pgcoord.feature.tokens_out is 'Output tokens of its attempts, from their results.';
comment on column pgcoord.board.result is 'The result of its latest attempt.';
comment on column pgcoord.queue.result is 'The result of its latest attempt.';
comment on column pgcoord.results.attempt is 'Number of the attempt at the phase, from 1.';
comment on column pgcoord.results.summary is 'Summary by the attempt itself.';
comment on column pgcoord.results.branch is 'The branch with its work.';
comment on column pgcoord.results.commit is 'The commit with its work.';
comment on column pgcoord.results.pr_number is 'The pull request with its work.';
comment on column pgcoord.results.url is 'URL of its work.';
comment on column pgcoord.results.result is 'The whole JSON object.';
comment on column pgcoord.costs.attempts is 'Attempts with a result.';
comment on column pgcoord.costs.cost_usd is 'Their cost in US dollars.';
comment on column pgcoord.costs.tokens_in is 'Their input tokens.';
comment on column pgcoord.costs.tokens_out is 'Their output tokens.';
comment on column pgcoord.feature.max_cost_usd is 'Its budget in US dollars; once it is spent the feature is paused.';

comment on column pgcoord.schedules.title is 'Title of the feature that it queues.';
comment on column pgcoord.schedules.phases is 'Number of phases of that feature.';
comment on column pgcoord.schedules.last_due_at is 'The latest due time that was processed.';
comment on column pgcoord.schedules.last_outcome is 'Result of that time: started, waiting, skipped, missed or failed.';
comment on column pgcoord.schedules.last_reason is 'The reason, in words.';
comment on column pgcoord.schedules.last_feature_id is 'The latest feature that it has queued.';
comment on column pgcoord.schedules.last_status is 'State of that feature.';
