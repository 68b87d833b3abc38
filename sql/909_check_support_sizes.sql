-- one row per run and fit whose support does not hold k neurons
-- severity: error
-- why: a probe reported at k = 2 that used five neurons is another probe
-- Elastic nets (telescopic methods) may leave fewer than k; dense probes, rotations and the prevalence have no neurons.
create view check_support_sizes as
with sizes as (
    select
        run_id,
        fit_id,
        count(*) as n_support
    from probe_supports
    group by run_id, fit_id
),

fits as (
    select
        scored_fits.run_id,
        scored_fits.fit_id,
        scored_fits.feature,
        scored_fits.method,
        scored_fits.variant,
        scored_fits.k,
        coalesce(sizes.n_support, 0) as n_support
    from scored_fits
    left join sizes on scored_fits.run_id = sizes.run_id and scored_fits.fit_id = sizes.fit_id
    where
        not scored_fits.is_dense
        and not scored_fits.is_rotated
        and scored_fits.variant in ('real', 'shuffled_labels')
        and scored_fits.status not in ('failed', 'skipped')
)

select
    run_id,
    'error' as severity,
    format('{} {} k={} (fit {})', feature, method, k, fit_id) as subject,
    format('{} neurons in its support', n_support) as found,
    k::varchar as expected
from fits
where
    n_support > k
    -- a baseline may come without its support
    or (n_support < k and method not like '%telescop%' and (variant = 'real' or n_support > 0));
