-- one row per run, feature and neuron with a score that is not a number or lies outside its range
-- severity: error
-- why: NaN sorts above every number, so one undefined score would lead the ranking
create view check_neuron_score_ranges as
with extremes as (
    -- greatest() gives NaN if any of its values is NaN, and NaN is above every bound
    select
        run_id,
        feature,
        layer,
        neuron,
        least(
            train_mcc, validation_mcc, test_mcc, train_best_mcc, validation_best_mcc, test_best_mcc
        ) as lowest_mcc,
        greatest(
            train_mcc, validation_mcc, test_mcc, train_best_mcc, validation_best_mcc, test_best_mcc
        ) as highest_mcc,
        least(
            train_f1, train_precision, train_recall, train_balanced_accuracy, train_roc_auc,
            train_average_precision, train_best_f1,
            validation_f1, validation_precision, validation_recall, validation_balanced_accuracy, validation_roc_auc,
            validation_average_precision, validation_best_f1,
            test_f1, test_precision, test_recall, test_balanced_accuracy, test_roc_auc,
            test_average_precision, test_best_f1,
            p_value, q_value
        ) as lowest_share,
        greatest(
            train_f1, train_precision, train_recall, train_balanced_accuracy, train_roc_auc,
            train_average_precision, train_best_f1,
            validation_f1, validation_precision, validation_recall, validation_balanced_accuracy, validation_roc_auc,
            validation_average_precision, validation_best_f1,
            test_f1, test_precision, test_recall, test_balanced_accuracy, test_roc_auc,
            test_average_precision, test_best_f1,
            p_value, q_value
        ) as highest_share
    from neuron_scores
)

select
    run_id,
    'error' as severity,
    format('{} layer {} neuron {}', feature, layer, neuron) as subject,
    format(
        'mcc {:.4f} to {:.4f}, other scores {:.4f} to {:.4f}', lowest_mcc, highest_mcc, lowest_share, highest_share
    ) as found,
    'mcc in [-1, 1], all other scores in [0, 1], none NaN' as expected
from extremes
where
    lowest_mcc < -1.000001
    or highest_mcc > 1.000001
    or lowest_share < -0.000001
    or highest_share > 1.000001;
