-- one row per run and feature: the neuron that ranks first on validation, with its test numbers
create view best_neuron_per_feature as
select
    run_id,
    study,
    model,
    revision,
    collection,
    feature,
    hook,
    pooling,
    layer,
    neuron,
    ties,
    coef,
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
    n_test_positive
from neuron_rankings
where rank = 1;
