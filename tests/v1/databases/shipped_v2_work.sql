-- Feature 7 and its phases; phases of a feature that is not there, and of none; steps of ADWs.
insert into planned_features (id, item_type, title, status, github_issue_number, created_at, updated_at) values
    (7, 'feature', 'Seven', 'in_progress', 300, '2025-11-02 10:00', '2025-11-03 10:00');
insert into phase_queue (queue_id, feature_id, phase_number, status, depends_on_phases, phase_data, adw_id, current_phase, created_at, updated_at) values
    ('v1', 7, 1, 'completed', '[]', '{"title": "One"}', 'adw-1', 'ship', '2025-11-03 10:00', '2025-11-03 11:00'),
    ('v2', 7, 2, 'running', null, '{"title": "Two"}', 'adw-2', 'build', '2025-11-03 10:00', '2025-11-03 11:00'),
    ('v3', 7, 3, 'queued', '[2, 1, 1]', '{"title": "Three"}', null, 'init', '2025-11-03 10:00', '2025-11-03 11:00'),
    ('v4', 7, 4, 'queued', '{"after": 1}', '{"title": "Four"}', null, 'init', '2025-11-03 10:00', '2025-11-03 11:00'),
    ('w1', 301, 1, 'queued', '[]', '{"title": "Of no feature"}', null, 'init', '2025-11-04 10:00', '2025-11-04 11:00'),
    ('x1', null, 1, 'queued', '[]', '{"title": "Of nothing"}', null, 'init', '2025-11-05 10:00', '2025-11-05 11:00'),
    ('adw-2', null, 1, 'queued', '[]', '{}', 'adw-2', 'init', '2025-11-03 11:00', '2025-11-03 11:00');
