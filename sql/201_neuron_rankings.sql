-- one row per run, feature and shortlisted neuron: its rank in the whole model
-- Shortlisted per layer on train, ordered by validation, reported on test: the test split never decides an order.
-- difference_low, difference_high: interval of the test mcc of the neuron that ranks first less this one's, on the same rows.
-- p_value_is_bound: no permutation reached the neuron, so its p-value and its q-value are at most what stands here.
-- ties: the first neuron, and those that it is not shown to beat: that interval does not lie above 0. Null if none was compared.
create view neuron_rankings as
with ranked as (
    select
        shortlisted_neurons.run_id,
        shortlisted_neurons.feature,
        shortlisted_neurons.layer,
        shortlisted_neurons.neuron,
        ordered_neurons.rank,
        shortlisted_neurons.layer_rank,
        shortlisted_neurons.coef,
        shortlisted_neurons.intercept,
        shortlisted_neurons.threshold,
        shortlisted_neurons.direction,
        shortlisted_neurons.mean_difference,
        shortlisted_neurons.train_mcc,
        shortlisted_neurons.train_roc_auc,
        shortlisted_neurons.validation_mcc,
        shortlisted_neurons.validation_mcc_low,
        shortlisted_neurons.validation_mcc_high,
        shortlisted_neurons.validation_f1,
        shortlisted_neurons.validation_precision,
        shortlisted_neurons.validation_recall,
        shortlisted_neurons.validation_balanced_accuracy,
        shortlisted_neurons.validation_roc_auc,
        shortlisted_neurons.validation_average_precision,
        shortlisted_neurons.test_mcc,
        shortlisted_neurons.test_mcc_low,
        shortlisted_neurons.test_mcc_high,
        shortlisted_neurons.test_f1,
        shortlisted_neurons.test_precision,
        shortlisted_neurons.test_recall,
        shortlisted_neurons.test_balanced_accuracy,
        shortlisted_neurons.test_roc_auc,
        shortlisted_neurons.test_average_precision,
        shortlisted_neurons.p_value,
        shortlisted_neurons.q_value
    from shortlisted_neurons
    inner join ordered_neurons
        on
            shortlisted_neurons.run_id = ordered_neurons.run_id
            and shortlisted_neurons.feature = ordered_neurons.feature
            and shortlisted_neurons.layer = ordered_neurons.layer
            and shortlisted_neurons.neuron = ordered_neurons.neuron
),

leaders as (
    select
        run_id,
        feature,
        format('{}/{}', layer, neuron) as probe_id
    from ranked
    where rank = 1
),

behind as (
    select
        comparisons.run_id,
        comparisons.feature,
        comparisons.other_probe_id,
        comparisons.difference_low,
        comparisons.difference_high
    from comparisons
    inner join leaders
        on
            comparisons.run_id = leaders.run_id
            and comparisons.feature = leaders.feature
            and comparisons.probe_id = leaders.probe_id
    where comparisons.metric = 'mcc' and comparisons.other_run_id = comparisons.run_id
),

tied as (
    select
        run_id,
        feature,
        1 + count_if(difference_low <= 0) as ties
    from behind
    group by run_id, feature
)

select
    ranked.run_id,
    probed_features.study,
    probed_features.model,
    probed_features.model_id,
    probed_features.weights_digest,
    probed_features.revision,
    probed_features.collection,
    ranked.feature,
    probed_features.hook,
    probed_features.pooling,
    ranked.layer,
    ranked.neuron,
    ranked.rank,
    tied.ties,
    behind.difference_low,
    behind.difference_high,
    'validation_mcc' as selection_metric,
    ranked.layer_rank,
    ranked.coef,
    ranked.intercept,
    ranked.threshold,
    ranked.direction,
    ranked.mean_difference,
    ranked.train_mcc,
    ranked.train_roc_auc,
    ranked.validation_mcc,
    ranked.validation_mcc_low,
    ranked.validation_mcc_high,
    ranked.validation_f1,
    ranked.validation_precision,
    ranked.validation_recall,
    ranked.validation_balanced_accuracy,
    ranked.validation_roc_auc,
    ranked.validation_average_precision,
    ranked.test_mcc,
    ranked.test_mcc_low,
    ranked.test_mcc_high,
    ranked.test_f1,
    ranked.test_precision,
    ranked.test_recall,
    ranked.test_balanced_accuracy,
    ranked.test_roc_auc,
    ranked.test_average_precision,
    ranked.p_value,
    -- single precision
    ranked.p_value <= probed_features.smallest_p_value * 1.000001 as p_value_is_bound,
    ranked.q_value,
    probed_features.prevalence,
    probed_features.n_test,
    probed_features.n_test_positive,
    probed_features.n_test_negative,
    probed_features.n_test_groups,
    probed_features.n_test_groups_positive
from ranked
inner join probed_features
    on ranked.run_id = probed_features.run_id and ranked.feature = probed_features.feature
left join behind
    on
        ranked.run_id = behind.run_id
        and ranked.feature = behind.feature
        and format('{}/{}', ranked.layer, ranked.neuron) = behind.other_probe_id
left join tied on ranked.run_id = tied.run_id and ranked.feature = tied.feature;
