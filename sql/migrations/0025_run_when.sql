-- When a phase runs: after prerequisites that were completed, or when one of them was not, or however they ended.
alter table public.phase_queue add column run_when text not null default 'completed';
comment on column public.phase_queue.run_when is
    'completed: once all prerequisites are; failed: once all have ended and one was not completed; always: once all have ended.';
alter table pgcoord.dependency add column conditional boolean not null default false;
comment on column pgcoord.dependency.conditional is
    'The dependent waits for an end of any kind: its run_when is failed or always.';
