-- one row per run, feature and shortlisted neuron: its rank in the whole model
-- Shortlisted per layer on train, ordered by validation, reported on test: the test split never decides an order.
-- ties: shortlisted neurons of the feature with the same validation_mcc, this one included.
create view neuron_rankings as
with ranked as (
    select
        run_id,
        feature,
        layer,
        neuron,
        row_number() over (
            partition by run_id, feature
            order by
                validation_mcc desc nulls last,
                train_mcc desc nulls last,
                train_roc_auc desc nulls last,
                layer,
                neuron
        ) as rank,
        count(*) over (partition by run_id, feature, validation_mcc) as ties,
        layer_rank,
        coef,
        intercept,
        mean_difference,
        train_mcc,
        train_roc_auc,
        validation_mcc,
        validation_mcc_low,
        validation_mcc_high,
        validation_f1,
        validation_precision,
        validation_recall,
        validation_balanced_accuracy,
        validation_roc_auc,
        validation_average_precision,
        test_mcc,
        test_mcc_low,
        test_mcc_high,
        test_f1,
        test_precision,
        test_recall,
        test_balanced_accuracy,
        test_roc_auc,
        test_average_precision,
        p_value,
        q_value
    from shortlisted_neurons
)

select
    ranked.run_id,
    probed_features.study,
    probed_features.model,
    probed_features.revision,
    probed_features.collection,
    ranked.feature,
    probed_features.hook,
    probed_features.pooling,
    ranked.layer,
    ranked.neuron,
    ranked.rank,
    ranked.ties,
    'validation_mcc' as selection_metric,
    ranked.layer_rank,
    ranked.coef,
    ranked.intercept,
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
    ranked.q_value,
    probed_features.prevalence,
    probed_features.n_test,
    probed_features.n_test_positive
from ranked
inner join probed_features
    on ranked.run_id = probed_features.run_id and ranked.feature = probed_features.feature;
