-- one row per run and fit: the fit with the one score its task is judged by (mcc, or r2 for regression) in each split
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
        case when is_regression then train_r2 else train_mcc end as train_score,
        case when is_regression then validation_r2 else validation_mcc end as validation_score,
        case when is_regression then test_r2 else test_mcc end as test_score,
        case when is_regression then test_r2_low else test_mcc_low end as test_low,
        case when is_regression then test_r2_high else test_mcc_high end as test_high,
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
    case when not isnan(train_score) then train_score end as train_score,
    case when not isnan(validation_score) then validation_score end as validation_score,
    case when not isnan(test_score) then test_score end as test_score,
    test_low,
    test_high,
    test_f1,
    test_roc_auc,
    test_average_precision
from judged;
