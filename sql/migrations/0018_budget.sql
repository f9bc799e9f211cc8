-- Budgets: what a feature may cost, and what phases of a workflow may cost within one.
alter table public.planned_features
    add column max_cost_usd numeric,
    add constraint planned_features_budget_is_amount check (max_cost_usd > 0 and max_cost_usd <= 1e9);
comment on column public.planned_features.max_cost_usd is
    'What it may cost, in US dollars, as the results of its attempts say: once that is spent it is paused. Null: no limit.';
alter table pgcoord.workflow add column max_cost_usd numeric;
comment on column pgcoord.workflow.max_cost_usd is
    'What its phases may cost within one feature, in US dollars: once that is spent the feature is paused. Null: no limit.';
