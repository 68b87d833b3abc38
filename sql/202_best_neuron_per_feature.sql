-- one row per run and feature: the neuron that ranks first on validation, with its test numbers
-- Predicted positive, and so scored: activations above threshold where direction is +1 (the neuron rises), below it where -1.
-- n_test_groups: the groups (documents, projects) behind the test rows, and behind the interval of the test score.
create view best_neuron_per_feature as
select
    run_id,
    study,
    model,
    model_id,
    weights_digest,
    revision,
    collection,
    feature,
    hook,
    pooling,
    layer,
    neuron,
    ties,
    direction,
    threshold,
    coef,
    intercept,
    train_mcc,
    validation_mcc,
    validation_mcc_low,
    validation_mcc_high,
    test_mcc,
    test_mcc_low,
    test_mcc_high,
    test_f1,
    test_precision,
    test_recall,
    test_roc_auc,
    test_average_precision,
    prevalence,
    p_value,
    q_value,
    n_test,
    n_test_positive,
    n_test_negative,
    n_test_groups,
    n_test_groups_positive
from neuron_rankings
where rank = 1;
