-- one row per run, feature and shortlisted neuron: its rank in the whole model
-- Shortlisted per layer on train, ordered by validation, reported on test: the test split never decides an order.
-- difference_low, difference_high: interval of the test mcc of the neuron that ranks first less this one's, on the same rows.
-- p_value_is_bound: no permutation reached the neuron, so its p-value and its q-value are at most what stands here.
-- ties: the first neuron, and those that it is not shown to beat: that interval does not lie above 0. Null if none was compared.
create view neuron_rankings as
with leaders as (
    select
        run_id,
        feature,
        format('{}/{}', layer, neuron) as probe_id
    from ordered_neurons
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
    neurons.run_id,
    probed_features.study,
    probed_features.model,
    probed_features.model_id,
    probed_features.weights_digest,
    probed_features.revision,
    probed_features.collection,
    neurons.feature,
    probed_features.hook,
    probed_features.pooling,
    neurons.layer,
    neurons.neuron,
    ordered_neurons.rank,
    tied.ties,
    behind.difference_low,
    behind.difference_high,
    'validation_mcc' as selection_metric,
    neurons.layer_rank,
    neurons.coef,
    neurons.intercept,
    neurons.threshold,
    neurons.direction,
    neurons.mean_difference,
    neurons.train_mcc,
    neurons.train_roc_auc,
    neurons.validation_mcc,
    neurons.validation_mcc_low,
    neurons.validation_mcc_high,
    neurons.validation_f1,
    neurons.validation_precision,
    neurons.validation_recall,
    neurons.validation_balanced_accuracy,
    neurons.validation_roc_auc,
    neurons.validation_average_precision,
    neurons.test_mcc,
    neurons.test_mcc_low,
    neurons.test_mcc_high,
    neurons.test_f1,
    neurons.test_precision,
    neurons.test_recall,
    neurons.test_balanced_accuracy,
    neurons.test_roc_auc,
    neurons.test_average_precision,
    neurons.p_value,
    -- single precision
    neurons.p_value <= probed_features.smallest_p_value * 1.000001 as p_value_is_bound,
    neurons.q_value,
    probed_features.prevalence,
    probed_features.n_test,
    probed_features.n_test_positive,
    probed_features.n_test_negative,
    probed_features.n_test_groups,
    probed_features.n_test_groups_positive
from shortlisted_neurons as neurons
inner join ordered_neurons
    on
        neurons.run_id = ordered_neurons.run_id
        and neurons.feature = ordered_neurons.feature
        and neurons.layer = ordered_neurons.layer
        and neurons.neuron = ordered_neurons.neuron
inner join probed_features
    on neurons.run_id = probed_features.run_id and neurons.feature = probed_features.feature
left join behind
    on
        neurons.run_id = behind.run_id
        and neurons.feature = behind.feature
        and format('{}/{}', neurons.layer, neurons.neuron) = behind.other_probe_id
left join tied on neurons.run_id = tied.run_id and neurons.feature = tied.feature;
