-- one row per run, feature, method, variant, ranking, step and k: the layer that validation chose, with its test numbers
-- score is mcc, or r2 for regression (column metric). The dense columns repeat the feature's dense probe for comparison.
create view sparsity_curves as
with placed as (
    select
        run_id,
        feature,
        method,
        variant,
        ranking,
        step,
        k,
        layer,
        fit_id,
        status,
        converged,
        is_dense,
        metric,
        train_score,
        validation_score,
        test_score,
        test_low,
        test_high,
        test_f1,
        test_roc_auc,
        test_average_precision,
        count(*) over (partition by run_id, feature, method, variant, ranking, step, k) as n_layers,
        row_number() over (
            partition by run_id, feature, method, variant, ranking, step, k
            order by validation_score desc nulls last, train_score desc nulls last, layer, fit_id
        ) as place
    from scored_fits
),

dense_placed as (
    select
        run_id,
        feature,
        layer,
        validation_score,
        test_score,
        row_number() over (
            partition by run_id, feature
            order by validation_score desc nulls last, train_score desc nulls last, layer, fit_id
        ) as place
    from scored_fits
    where is_dense and validation_score is not null
)

select
    placed.run_id,
    probed_features.model,
    probed_features.revision,
    probed_features.collection,
    placed.feature,
    probed_features.hook,
    placed.method,
    placed.variant,
    placed.ranking,
    placed.step,
    placed.k,
    placed.layer,
    placed.n_layers,
    placed.fit_id,
    placed.status,
    placed.converged,
    placed.is_dense,
    placed.metric,
    placed.train_score,
    placed.validation_score,
    placed.test_score,
    placed.test_low,
    placed.test_high,
    placed.test_f1,
    placed.test_roc_auc,
    placed.test_average_precision,
    dense_placed.layer as dense_layer,
    dense_placed.validation_score as dense_validation_score,
    dense_placed.test_score as dense_test_score
from placed
inner join probed_features
    on placed.run_id = probed_features.run_id and placed.feature = probed_features.feature
left join dense_placed
    on placed.run_id = dense_placed.run_id and placed.feature = dense_placed.feature and dense_placed.place = 1
where placed.place = 1;
