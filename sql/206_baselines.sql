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
        layer,
        metric,
        train_score,
        validation_score,
        test_score,
        test_low,
        test_high,
        fit_id
    from sparsity_curves
    where validation_score is not null
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
        layer,
        metric,
        validation_score,
        test_score,
        test_low,
        test_high,
        row_number() over (
            partition by run_id, feature, variant
            order by validation_score desc, train_score desc nulls last, k, method, fit_id
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
    layer,
    metric,
    validation_score,
    test_score,
    test_low,
    test_high
from placed
where place = 1;
