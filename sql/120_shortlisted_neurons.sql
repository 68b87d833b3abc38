-- one row per run, feature and neuron that its layer's shortlist holds (chosen on train); scores that are not numbers are null
-- threshold: the activation at which the neuron's logistic regression is undecided, which every score here but best_… ones is of.
-- direction: +1 where activations above the threshold are predicted positive (the neuron rises), -1 where those below are.
create view shortlisted_neurons as
select
    run_id,
    feature,
    layer,
    neuron,
    layer_rank,
    coef,
    intercept,
    case when coef <> 0 then -intercept::double / coef end as threshold,
    sign(coef)::tinyint as direction,
    mean_difference,
    p_value,
    q_value,
    case when not isnan(train_mcc) then train_mcc end as train_mcc,
    case when not isnan(train_roc_auc) then train_roc_auc end as train_roc_auc,
    case when not isnan(validation_mcc) then validation_mcc end as validation_mcc,
    validation_mcc_low,
    validation_mcc_high,
    validation_f1,
    validation_precision,
    validation_recall,
    validation_balanced_accuracy,
    validation_roc_auc,
    validation_average_precision,
    case when not isnan(test_mcc) then test_mcc end as test_mcc,
    test_mcc_low,
    test_mcc_high,
    test_f1,
    test_precision,
    test_recall,
    test_balanced_accuracy,
    test_roc_auc,
    test_average_precision
from kept_scores
where shortlisted;
