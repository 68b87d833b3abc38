-- one row per run, feature and variant: the best fit of the real probes and of each baseline, chosen on validation
-- difference_low, difference_high: interval of the test score of the best real probe less this baseline's, on the same rows;
-- probe_is_better: it lies above 0. Null for the probe itself, and where nothing was compared.
-- Each variant is searched over its own layers, methods and k, so that a baseline has the same luck as the probe.
create view baselines as
with placed as (
    select
        fits.run_id,
        runs.model,
        runs.revision,
        runs.collection,
        fits.feature,
        ordered_fits.variant,
        fits.method,
        fits.k,
        fits.n_candidates,
        fits.layer,
        fits.metric,
        fits.validation_mcc,
        fits.test_mcc,
        fits.test_mcc_low,
        fits.test_mcc_high,
        fits.validation_r2,
        fits.test_r2,
        fits.test_r2_low,
        fits.test_r2_high,
        fits.fit_id
    from ordered_fits
    inner join scored_fits as fits on ordered_fits.run_id = fits.run_id and ordered_fits.fit_id = fits.fit_id
    inner join probed_features as runs on fits.run_id = runs.run_id and fits.feature = runs.feature
    where ordered_fits.place = 1
)

select
    placed.run_id,
    placed.model,
    placed.revision,
    placed.collection,
    placed.feature,
    placed.variant,
    placed.method,
    placed.k,
    placed.n_candidates,
    placed.layer,
    placed.metric,
    placed.validation_mcc,
    placed.test_mcc,
    placed.test_mcc_low,
    placed.test_mcc_high,
    placed.validation_r2,
    placed.test_r2,
    placed.test_r2_low,
    placed.test_r2_high,
    comparisons.difference_low,
    comparisons.difference_high,
    comparisons.difference_low > 0 as probe_is_better,
    placed.fit_id
from placed
left join placed as probe
    on
        placed.run_id = probe.run_id
        and placed.feature = probe.feature
        and placed.metric = probe.metric
        and probe.variant = 'real'
left join comparisons
    on
        placed.run_id = comparisons.run_id
        and placed.feature = comparisons.feature
        and placed.metric = comparisons.metric
        and probe.fit_id = comparisons.probe_id
        and placed.run_id = comparisons.other_run_id
        and placed.fit_id = comparisons.other_probe_id;
