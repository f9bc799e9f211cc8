-- When a coordinator gave the lead back: since then nobody watches, unless another one leads.
alter table pgcoord.coordinator add column resigned_at timestamptz;
comment on column pgcoord.coordinator.resigned_at is 'When it gave the lead back; null while it leads, or when it was killed.';
