-- What was needed for reading goes; what was decided stays, beside the old tables.
drop table pgcoord_v1.adopted, pgcoord_v1.carried, pgcoord_v1.circle, pgcoord_v1.chosen, pgcoord_v1.request, pgcoord_v1.member,
    pgcoord_v1.phase, pgcoord_v1.feature;
drop view pgcoord_v1.phase_queue_text, pgcoord_v1.planned_features_text, pgcoord_v1.queue_config_text,
    pgcoord_v1.webhook_events_text, pgcoord_v1.adw_locks_text;
drop function pgcoord_v1.whole, pgcoord_v1.hours, pgcoord_v1.moment, pgcoord_v1.odd_moment, pgcoord_v1.json,
    pgcoord_v1.prerequisites, pgcoord_v1.numbers, pgcoord_v1.phase_data, pgcoord_v1.plan;
update pgcoord_v1.migration set last_event = (select max(id) from pgcoord.event);
