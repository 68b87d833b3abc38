-- one row per run, feature, method and ranking: the smallest k that reaches 95 % of the dense probe's validation score
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
        layer,
        metric,
        validation_score,
        test_score,
        dense_validation_score,
        dense_test_score,
        0.95 * dense_validation_score as target_score
    from sparsity_curves
    where variant = 'real' and not is_dense and step = 0 and dense_validation_score is not null
),

reached as (
    select
        run_id,
        feature,
        method,
        ranking,
        min(k) as smallest_k,
        arg_min(layer, k) as layer,
        arg_min(validation_score, k) as validation_score,
        arg_min(test_score, k) as test_score
    from curves
    where target_score > 0 and validation_score >= target_score
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
        dense_validation_score,
        dense_test_score,
        target_score,
        max(k) as largest_k_tried
    from curves
    group by
        run_id, model, revision, collection, feature, method, ranking, metric,
        dense_validation_score, dense_test_score, target_score
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
    tried.dense_validation_score,
    tried.dense_test_score,
    tried.target_score,
    tried.largest_k_tried,
    reached.smallest_k,
    reached.layer,
    reached.validation_score,
    reached.test_score
from tried
left join reached
    on
        tried.run_id = reached.run_id
        and tried.feature = reached.feature
        and tried.method = reached.method
        and tried.ranking is not distinct from reached.ranking;
