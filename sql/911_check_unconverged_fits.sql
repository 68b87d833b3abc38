-- one row per run and table in which more than 1 % of the fits did not converge
-- severity: warning
-- why: an unconverged fit has a score like any other, and understates the probe
create view check_unconverged_fits as
with counts as (
    select
        run_id,
        'neuron_scores' as table_name,
        count(*) as n_fits,
        count(*) filter (where not converged) as n_unconverged
    from neuron_scores
    group by run_id
    union all
    select
        run_id,
        'probe_fits' as table_name,
        count(*) as n_fits,
        count(*) filter (where not converged) as n_unconverged
    from probe_fits
    where status not in ('failed', 'skipped', 'time_limit', 'size_limit')
    group by run_id
)

select
    run_id,
    'warning' as severity,
    table_name as subject,
    format('{} of {} fits not converged', n_unconverged, n_fits) as found,
    'at most 1 %' as expected
from counts
where n_unconverged > 0.01 * n_fits;
