-- one row per run, feature and shortlisted neuron that reaches every threshold of its collection
-- Thresholds lie in interest_thresholds, by collection and metric; '*' is for collections without a row of their own.
create view neurons_of_interest as
with scores as (
    unpivot (
        select
            run_id,
            collection,
            feature,
            layer,
            neuron,
            validation_mcc,
            validation_f1,
            validation_precision,
            validation_recall,
            validation_balanced_accuracy,
            validation_roc_auc,
            validation_average_precision
        from neuron_rankings
    )
    on
        validation_mcc,
        validation_f1,
        validation_precision,
        validation_recall,
        validation_balanced_accuracy,
        validation_roc_auc,
        validation_average_precision
    into name metric value score
),

own_thresholds as (
    select distinct collection
    from interest_thresholds
    where collection <> '*'
),

collections as (
    select
        runs.collection,
        coalesce(own_thresholds.collection, '*') as threshold_key
    from (select distinct collection from runs) as runs
    left join own_thresholds on runs.collection = own_thresholds.collection
),

required as (
    select
        collections.collection,
        interest_thresholds.metric,
        interest_thresholds.threshold
    from collections
    inner join interest_thresholds on collections.threshold_key = interest_thresholds.collection
),

compared as (
    select
        scores.run_id,
        scores.feature,
        scores.layer,
        scores.neuron,
        required.metric,
        -- scores are stored in single precision
        coalesce(not isnan(scores.score) and scores.score >= required.threshold - 1e-6, false) as reached
    from scores
    inner join required on scores.collection = required.collection and scores.metric = required.metric
),

n_required as (
    select
        collection,
        count(*) as n_thresholds
    from required
    group by collection
),

n_reached as (
    select
        run_id,
        feature,
        layer,
        neuron,
        count(*) filter (where reached) as n_thresholds_reached
    from compared
    group by run_id, feature, layer, neuron
)

select
    neuron_rankings.run_id,
    neuron_rankings.model,
    neuron_rankings.revision,
    neuron_rankings.collection,
    neuron_rankings.feature,
    neuron_rankings.hook,
    neuron_rankings.layer,
    neuron_rankings.neuron,
    neuron_rankings.rank,
    neuron_rankings.ties,
    neuron_rankings.direction,
    neuron_rankings.threshold,
    neuron_rankings.coef,
    neuron_rankings.intercept,
    neuron_rankings.validation_mcc,
    neuron_rankings.test_mcc,
    neuron_rankings.test_mcc_low,
    neuron_rankings.test_mcc_high,
    neuron_rankings.test_f1,
    neuron_rankings.test_precision,
    neuron_rankings.test_recall,
    neuron_rankings.prevalence,
    neuron_rankings.q_value,
    neuron_rankings.n_test,
    neuron_rankings.n_test_positive,
    neuron_rankings.n_test_negative,
    neuron_rankings.n_test_groups,
    neuron_rankings.n_test_groups_positive
from neuron_rankings
inner join n_required on neuron_rankings.collection = n_required.collection
inner join n_reached
    on
        neuron_rankings.run_id = n_reached.run_id
        and neuron_rankings.feature = n_reached.feature
        and neuron_rankings.layer = n_reached.layer
        and neuron_rankings.neuron = n_reached.neuron
where n_reached.n_thresholds_reached = n_required.n_thresholds;
