-- Work as it was found in installations of version 1 (columns of all dialects that name a parent issue).

-- Two features of the plan, one of which has its issue; an item without phases, one that was given up.
insert into planned_features (id, item_type, title, description, status, priority, estimated_hours, github_issue_number, tags, created_at, updated_at, completed_at, generated_plan, parent_id) values
    (3, 'feature', 'Live updates', 'Show changes', 'in_progress', 'high', 4.5, 42, '["panel"]', '2025-11-02 10:00', '2025-11-03 10:00', null, null, null),
    (4, 'feature', 'Dark mode', null, 'planned', 'low', null, null, null, '2025-11-02 11:00', '2025-11-02 11:00', null,
        '{"phases": [{"phase_number": 1, "title": "Colours", "prompt_content": "Choose …"}, {"phase_number": 2, "title": "Switch", "content": "Add …", "depends_on": 1}]}', 3),
    (5, 'bug', 'Login fails', null, 'completed', 'medium', 1, null, null, '2025-10-01 08:00', '2025-10-02 08:00', '2025-10-02 08:00', null, null),
    (7, 'session', 'Session 12', null, 'cancelled', null, null, 99, null, '2025-10-01 08:00', '2025-10-05 08:00', null, null, null);
select setval('planned_features_id_seq', 9);
insert into work_log (feature_id, summary) values (3, 'began');

insert into phase_queue (queue_id, parent_issue, phase_number, issue_number, status, depends_on_phase, phase_data, created_at, updated_at, error_message, priority, queue_position, ready_timestamp, started_timestamp, adw_id) values
    -- Issue 42, which is feature 3: done, running, waiting.
    ('q-42-1', 42, 1, 43, 'completed', null, '{"title": "Tables", "content": "Add the tables", "externalDocs": ["db.md"]}', '2025-11-03 10:00', '2025-11-03 11:00', null, 50, 1, '2025-11-03 10:01', '2025-11-03 10:02', 'adw-00000001'),
    ('q-42-2', 42, 2, 44, 'running', 1, '{"title": "Backend", "content": "Add the endpoint"}', '2025-11-03 10:00', '2025-11-03 11:02', null, 50, 2, '2025-11-03 11:01', '2025-11-03 11:02', 'adw-00000002'),
    ('q-42-3', 42, 3, null, 'queued', 2, '{"title": "Frontend", "content": "Show it", "workflow_type": "adw_patch_iso"}', '2025-11-03 10:00', '2025-11-03 10:00', null, 20, 3, null, null, null),
    -- Uploaded requests, all with parent 0: three phases; then two, of which one failed; then a lonely one.
    ('q-0-a1', 0, 1, null, 'completed', null, '{"title": "Parse"}', '2025-11-04 09:00', '2025-11-04 10:00', null, 50, 10, null, '2025-11-04 09:01', 'adw-0000000a'),
    ('q-0-a2', 0, 2, null, 'ready', 1, '{"title": "Store", "content": "Store it"}', '2025-11-04 09:00', '2025-11-04 10:00', null, 50, 11, '2025-11-04 10:00', null, null),
    ('q-0-a3', 0, 3, null, 'queued', 2, '{"title": "Show", "content": "Show it"}', '2025-11-04 09:00', '2025-11-04 09:00', null, 50, 12, null, null, null),
    ('q-0-b1', 0, 1, null, 'failed', null, '{"title": "Guess"}', '2025-11-04 12:00', '2025-11-04 13:00', 'it was wrong', 50, 13, null, '2025-11-04 12:01', 'adw-0000000b'),
    ('q-0-b2', 0, 2, null, 'blocked', 1, '{"title": "Use the guess"}', '2025-11-04 12:00', '2025-11-04 13:00', null, 50, 14, null, null, null),
    ('q-0-c1', 0, 1, null, 'queued', null, '{"title": "Alone", "content": "Do it"}', '2025-11-05 12:00', '2025-11-05 12:00', null, 50, null, null, null, null),
    -- Issue 50 is no feature: retried once, with a second set of rows.
    ('q-50-1', 50, 1, 51, 'completed', null, '{"title": "First"}', '2025-11-06 08:00', '2025-11-06 09:00', null, 50, 20, null, '2025-11-06 08:01', 'adw-0000000c'),
    ('q-50-2', 50, 2, 52, 'failed', 1, '{"title": "Second"}', '2025-11-06 08:00', '2025-11-06 09:30', 'quota', 50, 21, null, '2025-11-06 09:01', 'adw-0000000d'),
    ('r-50-1', 50, 1, null, 'queued', null, '{"title": "First"}', '2025-11-07 08:00', '2025-11-07 08:00', null, 50, 22, null, null, null),
    ('r-50-2', 50, 2, null, 'queued', 1, '{"title": "Second", "content": "Again"}', '2025-11-07 08:00', '2025-11-07 08:00', null, 50, 23, null, null, null),
    -- The row of an ADW about itself.
    ('adw-00000002', 44, 1, 44, 'queued', null, '{}', '2025-11-03 11:02', '2025-11-03 11:02', null, 50, null, null, null, 'adw-00000002'),
    -- Issue 60: no status; a prompt that is no JSON; dependencies that lead nowhere or round in a circle.
    ('q-60-1', 60, 1, null, null, null, '{"title": "Statusless", "content": "Do it"}', '2025-11-08 08:00', '2025-11-08 08:00', null, null, 30, null, null, null),
    ('q-60-2', 60, 2, null, 'queued', 9, '{"title": "Waits for nobody"}', '2025-11-08 08:00', '2025-11-08 08:00', null, 50, 31, null, null, null),
    ('q-60-3', 60, 3, null, 'queued', 4, '{"title": "Round"}', '2025-11-08 08:00', '2025-11-08 08:00', null, 50, 32, null, null, null),
    ('q-60-4', 60, 4, null, 'queued', 3, '{"title": "and round"}', '2025-11-08 08:00', '2025-11-08 08:00', null, 50, 33, null, null, null),
    ('q-60-5', 60, 5, null, 'queued', 5, '{"title": "Waits for itself"}', '2025-11-08 08:00', '2025-11-08 08:00', null, 50, 34, null, null, null),
    -- Issue 99 is a feature that was cancelled.
    ('q-99-1', 99, 1, null, 'queued', null, '{"title": "Never"}', '2025-10-03 08:00', '2025-10-03 08:00', null, 50, 40, null, null, null);

insert into webhook_events (webhook_id, webhook_type, adw_id, issue_number, received_at, processed) values
    ('w1', 'workflow_complete', 'adw-00000001', 43, '2025-11-03 11:00+00', true),
    ('w2', 'workflow_complete', 'adw-00000002', 44, '2025-11-03 12:00+00', false);
insert into adw_locks (issue_number, adw_id, status, created_at) values (44, 'adw-00000002', 'building', '2025-11-03 11:02');
