-- one row per run and fit with a score that is not a number or lies outside its range
-- severity: error
-- why: curves and baselines take the best validation score, and an impossible one is always the best
create view check_fit_score_ranges as
with extremes as (
    select
        run_id,
        fit_id,
        feature,
        method,
        k,
        least(
            train_mcc, validation_mcc, test_mcc, train_kappa, validation_kappa, test_kappa
        ) as lowest_correlation,
        greatest(
            train_mcc, validation_mcc, test_mcc, train_kappa, validation_kappa, test_kappa
        ) as highest_correlation,
        least(
            train_f1, train_accuracy, train_balanced_accuracy, train_precision, train_recall, train_roc_auc,
            train_pr_auc, train_average_precision,
            validation_f1, validation_accuracy, validation_balanced_accuracy, validation_precision, validation_recall,
            validation_roc_auc, validation_pr_auc, validation_average_precision,
            test_f1, test_accuracy, test_balanced_accuracy, test_precision, test_recall, test_roc_auc,
            test_pr_auc, test_average_precision
        ) as lowest_share,
        greatest(
            train_f1, train_accuracy, train_balanced_accuracy, train_precision, train_recall, train_roc_auc,
            train_pr_auc, train_average_precision,
            validation_f1, validation_accuracy, validation_balanced_accuracy, validation_precision, validation_recall,
            validation_roc_auc, validation_pr_auc, validation_average_precision,
            test_f1, test_accuracy, test_balanced_accuracy, test_precision, test_recall, test_roc_auc,
            test_pr_auc, test_average_precision,
            -- at most one, but with no lower bound
            train_r2, validation_r2, test_r2
        ) as highest_share
    from probe_fits
)

select
    run_id,
    'error' as severity,
    format('{} {} k={} (fit {})', feature, method, k, fit_id) as subject,
    format(
        'mcc and kappa {} to {}, other scores {} to {}',
        coalesce(lowest_correlation::varchar, 'none'),
        coalesce(highest_correlation::varchar, 'none'),
        coalesce(lowest_share::varchar, 'none'),
        coalesce(highest_share::varchar, 'none')
    ) as found,
    'mcc and kappa in [-1, 1], all other scores in [0, 1], r2 at most 1, none NaN' as expected
from extremes
where
    lowest_correlation < -1.000001
    or highest_correlation > 1.000001
    or lowest_share < -0.000001
    or highest_share > 1.000001;
