-- The specification's own script (its 6.2), as far as it gets without the foreign key.
alter table phase_queue add column depends_on_phases jsonb;
update phase_queue set depends_on_phases = case
    when depends_on_phase is null then '[]'::jsonb else json_build_array(depends_on_phase)::jsonb end;
alter table phase_queue rename column parent_issue to feature_id;
alter table phase_queue drop column depends_on_phase;
drop index idx_phase_queue_parent;
create index idx_phase_queue_feature on phase_queue (feature_id);
