-- one row per run and fit: the fit with the score its task is judged by (column metric: mcc, or r2 for regression) in each split
-- Scores of the other task, and scores that are not numbers, are null.
create view scored_fits as
with fits as (
    select
        probe_fits.run_id,
        probe_fits.fit_id,
        probe_fits.feature,
        probe_fits.layer,
        probe_fits.method,
        probe_fits.variant,
        probe_fits.ranking,
        probe_fits.k,
        probe_fits.step,
        probe_fits.status,
        probe_fits.converged,
        probe_fits.fit_seconds,
        coalesce(features.task = 'regression', false) as is_regression,
        probe_fits.variant = 'dense'
        or (probe_fits.variant = 'real' and probe_fits.method like 'dense%') as is_dense,
        probe_fits.variant = 'random_rotation' or probe_fits.method like '%rotation%' as is_rotated,
        probe_fits.train_mcc,
        probe_fits.train_r2,
        probe_fits.validation_mcc,
        probe_fits.validation_r2,
        probe_fits.test_mcc,
        probe_fits.test_r2,
        probe_fits.test_mcc_low,
        probe_fits.test_mcc_high,
        probe_fits.test_r2_low,
        probe_fits.test_r2_high,
        probe_fits.test_f1,
        probe_fits.test_roc_auc,
        probe_fits.test_average_precision
    from probe_fits
    left join features
        on probe_fits.run_id = features.run_id and probe_fits.feature = features.feature
),

judged as (
    select
        run_id,
        fit_id,
        feature,
        layer,
        method,
        variant,
        ranking,
        k,
        step,
        status,
        converged,
        fit_seconds,
        is_dense,
        is_rotated,
        case when is_regression then 'r2' else 'mcc' end as metric,
        case when not is_regression and not isnan(train_mcc) then train_mcc end as train_mcc,
        case when not is_regression and not isnan(validation_mcc) then validation_mcc end as validation_mcc,
        case when not is_regression and not isnan(test_mcc) then test_mcc end as test_mcc,
        case when not is_regression then test_mcc_low end as test_mcc_low,
        case when not is_regression then test_mcc_high end as test_mcc_high,
        case when is_regression and not isnan(train_r2) then train_r2 end as train_r2,
        case when is_regression and not isnan(validation_r2) then validation_r2 end as validation_r2,
        case when is_regression and not isnan(test_r2) then test_r2 end as test_r2,
        case when is_regression then test_r2_low end as test_r2_low,
        case when is_regression then test_r2_high end as test_r2_high,
        test_f1,
        test_roc_auc,
        test_average_precision
    from fits
)

select
    run_id,
    fit_id,
    feature,
    layer,
    method,
    variant,
    ranking,
    k,
    step,
    status,
    converged,
    fit_seconds,
    is_dense,
    is_rotated,
    metric,
    train_mcc,
    validation_mcc,
    test_mcc,
    test_mcc_low,
    test_mcc_high,
    train_r2,
    validation_r2,
    test_r2,
    test_r2_low,
    test_r2_high,
    test_f1,
    test_roc_auc,
    test_average_precision
from judged;
