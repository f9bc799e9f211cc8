-- How long, and how often, a phase waits that is to be tried later: when its result says so.
alter table pgcoord.workflow
    add column later_delay interval not null default '30 s',
    add column max_later integer;
comment on column pgcoord.workflow.later_delay is
    'How long a phase waits whose result says "later", at first; twice as long each further time in a row, 15 min at most.';
comment on column pgcoord.workflow.max_later is
    'How often in a row that is no failure; null: always.';
