-- one row per run and fit that validation can judge: its place among those of its feature and variant
-- The one rule of which probe, and of real-valued targets which layer, is best. Dense probes are a variant of their own.
create view ordered_fits as
with judged as (
    select
        run_id,
        fit_id,
        feature,
        layer,
        case when is_dense then 'dense' else variant end as variant,
        metric,
        k,
        method,
        coalesce(validation_mcc, validation_r2) as validation,
        coalesce(train_mcc, train_r2) as train
    from scored_fits
)

select
    run_id,
    fit_id,
    feature,
    layer,
    variant,
    metric,
    row_number() over (
        partition by run_id, feature, variant
        order by validation desc, train desc nulls last, k, method, layer, fit_id
    ) as place
from judged
where validation is not null;
