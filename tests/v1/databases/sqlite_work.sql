-- A column takes whatever it is given: a word as a priority, bytes that are no UTF-8, times of Python and of SQLite.
insert into phase_queue (queue_id, parent_issue, phase_number, status, depends_on_phase, phase_data, priority, queue_position, created_at, updated_at, pr_number) values
    ('l1', 0, 1, 'completed', null, cast(x'7b227469746c65223a20224f6e65222c2022636f6e74656e74223a202268c3a96c6c6fff227d' as text), 50, 1, '2025-11-03 10:00:00', '2025-11-03T11:00:00.123456', 5),
    ('l2', 0, 2, 'queued', 1, '{"title": "Two"}', 'soon', 2.0, '2025-11-03 10:00:00', '2025-11-03T10:00:00', null),
    ('l3', 0, 3, 'queued', 2, 'do what I mean', 50, 3, '2025-11-03 10:00:00', null, null),
    ('m1', 0, 1, null, null, '{"title": "Next"}', 50, 4, '2025-11-04 10:00:00', null, null);
