-- one row per run, feature, method and ranking: the smallest k that reaches 95 % of the dense probe's validation score
-- n_candidates is of the fit at smallest_k; where no k reaches it, of the fit at largest_k_tried.
-- smallest_k is null where no k reaches it, or where the dense probe itself is no better than chance.
create view feature_sparsity as
with curves as (
    select
        run_id,
        model,
        revision,
        collection,
        feature,
        method,
        ranking,
        k,
        n_candidates,
        layer,
        metric,
        validation_mcc,
        validation_r2,
        test_mcc,
        test_r2,
        dense_validation_mcc,
        dense_validation_r2,
        dense_test_mcc,
        dense_test_r2,
        0.95 * dense_validation_mcc as target_mcc,
        0.95 * dense_validation_r2 as target_r2
    from sparsity_curves
    where variant = 'real' and not is_dense and step = 0
        and coalesce(dense_validation_mcc, dense_validation_r2) is not null
),

reached as (
    select
        run_id,
        feature,
        method,
        ranking,
        min(k) as smallest_k,
        arg_min(n_candidates, k) as n_candidates,
        arg_min(layer, k) as layer,
        arg_min(validation_mcc, k) as validation_mcc,
        arg_min(validation_r2, k) as validation_r2,
        arg_min(test_mcc, k) as test_mcc,
        arg_min(test_r2, k) as test_r2
    from curves
    where
        coalesce(target_mcc, target_r2) > 0
        and coalesce(validation_mcc, validation_r2) >= coalesce(target_mcc, target_r2)
    group by run_id, feature, method, ranking
),

tried as (
    select
        run_id,
        model,
        revision,
        collection,
        feature,
        method,
        ranking,
        metric,
        dense_validation_mcc,
        dense_validation_r2,
        dense_test_mcc,
        dense_test_r2,
        target_mcc,
        target_r2,
        max(k) as largest_k_tried,
        arg_max(n_candidates, k) as n_candidates
    from curves
    group by
        run_id, model, revision, collection, feature, method, ranking, metric,
        dense_validation_mcc, dense_validation_r2, dense_test_mcc, dense_test_r2, target_mcc, target_r2
)

select
    tried.run_id,
    tried.model,
    tried.revision,
    tried.collection,
    tried.feature,
    tried.method,
    tried.ranking,
    tried.metric,
    tried.dense_validation_mcc,
    tried.dense_validation_r2,
    tried.dense_test_mcc,
    tried.dense_test_r2,
    tried.target_mcc,
    tried.target_r2,
    tried.largest_k_tried,
    reached.smallest_k,
    coalesce(reached.n_candidates, tried.n_candidates) as n_candidates,
    reached.layer,
    reached.validation_mcc,
    reached.validation_r2,
    reached.test_mcc,
    reached.test_r2
from tried
left join reached
    on
        tried.run_id = reached.run_id
        and tried.feature = reached.feature
        and tried.method = reached.method
        and tried.ranking is not distinct from reached.ranking;
