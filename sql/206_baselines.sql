-- one row per run, feature and variant: the best fit of the real probes and of each baseline, chosen on validation
-- Each variant is searched over its own layers, methods and k, so that a baseline has the same luck as the probe.
create view baselines as
with labelled as (
    select
        run_id,
        model,
        revision,
        collection,
        feature,
        case when is_dense then 'dense' else variant end as variant,
        method,
        k,
        n_candidates,
        layer,
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
        fit_id
    from sparsity_curves
    where coalesce(validation_mcc, validation_r2) is not null
),

placed as (
    select
        run_id,
        model,
        revision,
        collection,
        feature,
        variant,
        method,
        k,
        n_candidates,
        layer,
        metric,
        validation_mcc,
        test_mcc,
        test_mcc_low,
        test_mcc_high,
        validation_r2,
        test_r2,
        test_r2_low,
        test_r2_high,
        row_number() over (
            partition by run_id, feature, variant
            order by
                coalesce(validation_mcc, validation_r2) desc,
                coalesce(train_mcc, train_r2) desc nulls last,
                k,
                method,
                fit_id
        ) as place
    from labelled
)

select
    run_id,
    model,
    revision,
    collection,
    feature,
    variant,
    method,
    k,
    n_candidates,
    layer,
    metric,
    validation_mcc,
    test_mcc,
    test_mcc_low,
    test_mcc_high,
    validation_r2,
    test_r2,
    test_r2_low,
    test_r2_high
from placed
where place = 1;
