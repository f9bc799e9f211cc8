-- phase_data as jsonb: an object, and a string that holds one; a pull request.
insert into phase_queue (queue_id, parent_issue, phase_number, issue_number, status, depends_on_phase, phase_data, pr_number, created_at, updated_at) values
    ('s1', 12, 1, 13, 'completed', null, '{"title": "Once", "content": "Do", "nr": 1}', 77, '2025-11-03 10:00', '2025-11-03 11:00'),
    ('s2', 12, 2, 14, 'queued', 1, '"{\"title\": \"Twice encoded\", \"content\": \"Do\"}"', null, '2025-11-03 10:00', '2025-11-03 11:00');
