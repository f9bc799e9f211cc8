-- The expected duration of a phase, from its estimate and the past runs of its workflow.

-- The estimate in the data of a phase; null if there is none.
create or replace function pgcoord_private.estimate_of(p_phase_data jsonb) returns interval
language sql immutable
return case jsonb_typeof(p_phase_data -> 'estimated_hours') when 'number'
    -- A numeric, since a JSON number may be too large, or too close to 0, for any other type.
    then make_interval(secs => round(3600 * least(greatest((p_phase_data ->> 'estimated_hours')::numeric, 0), 1e5), 6)::float8) end;

-- The expected duration of a phase: low, median, high. It combines the estimate and the past runs, weighted by their
-- precision: an estimate is within half and double of the real duration eight times out of ten; runs are more precise the
-- more there are and the less they differ. Durations are compared by ratio (their logarithms). If the two disagree, the
-- range covers both. Nulls if nothing is known: no estimate, and fewer than three runs, or runs that differ by a factor of
-- fifty.
create or replace function pgcoord_private.expected_length(
    p_estimate interval, p_runs bigint, p_low interval, p_median interval, p_high interval,
    out low interval, out median interval, out high interval
)
language plpgsql immutable
set search_path = pg_catalog, pg_temp as $$
declare
    v_ten constant double precision := 1.2816;    -- standard deviations within which eight of ten lie
    v_estimate double precision := extract(epoch from p_estimate);
    v_median double precision := greatest(extract(epoch from p_median), 0.1);
    v_spread double precision := ln(greatest(extract(epoch from p_high), 0.1) / greatest(extract(epoch from p_low), 0.1)) / 2 / v_ten;
    v_variance double precision := greatest(v_spread, 0.1) ^ 2 + 0.5 / greatest(p_runs, 1);
    v_runs_weigh double precision := case when p_runs > 0 and v_spread < 1.5 then 1 / v_variance else 0 end;
    v_estimate_weighs constant double precision := 1 / (ln(2) / v_ten) ^ 2;
    v_weight double precision;
    v_mid double precision;
begin
    if v_estimate < 0.1 then
        low := p_estimate;
        median := p_estimate;
        high := p_estimate;
        return;
    elsif v_estimate is null then
        if p_runs >= 3 and v_spread < 1.5 then
            median := p_median;
            low := least(p_low, p_median / exp(v_ten * sqrt(v_variance)));
            high := greatest(p_high, p_median * exp(v_ten * sqrt(v_variance)));
        end if;
        return;
    elsif v_runs_weigh = 0 then
        low := p_estimate / 2;
        median := p_estimate;
        high := p_estimate * 2;
        return;
    end if;
    v_weight := v_runs_weigh + v_estimate_weighs;
    v_mid := (v_runs_weigh * ln(v_median) + v_estimate_weighs * ln(v_estimate)) / v_weight;
    median := make_interval(secs => exp(v_mid));
    low := least(make_interval(secs => exp(v_mid - v_ten / sqrt(v_weight))), p_estimate, p_median);
    high := greatest(make_interval(secs => exp(v_mid + v_ten / sqrt(v_weight))), p_estimate, p_median);
end $$;

-- The ratio of the average to the median, if eight of ten runs are between low and high. Durations are log-normal, so the
-- average is larger, and the sum over many phases is a sum of averages. At most 1.5.
create or replace function pgcoord_private.average_exceeds(p_low interval, p_high interval) returns double precision
language sql immutable
return case when extract(epoch from p_low) > 0
    then least(exp((ln(extract(epoch from p_high)::float8 / extract(epoch from p_low)::float8) / 2 / 1.2816) ^ 2 / 2), 1.5) else 1 end;

-- The remaining seconds of a phase that has run for some time: until the median, after that until the longest usual
-- duration, then until twice that, and so on. So an expected end does not change until it has passed.
create or replace function pgcoord_private.remaining_length(p_elapsed double precision, p_usual double precision, p_high double precision)
returns double precision
language sql immutable
return case when p_usual is not null then greatest(case
    when p_elapsed < p_usual then p_usual
    when p_elapsed < p_high or p_high <= 0 then p_high
    else p_high * 2 ^ (floor(log(2, greatest(p_elapsed / p_high, 1)::numeric)) + 1)
end - p_elapsed, 0) end;
