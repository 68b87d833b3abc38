-- one row per run and feature: the feature's counts beside the model, collection and hook it was probed with
create view probed_features as
select
    runs.run_id,
    runs.study,
    runs.model,
    runs.model_id,
    runs.weights_digest,
    runs.revision,
    runs.collection,
    runs.hook,
    runs.pooling,
    runs.split_mode,
    runs.smallest_p_value,
    runs.created_at,
    features.feature,
    features.task,
    features.level,
    features.prevalence,
    features.n_train,
    features.n_train_positive,
    features.n_train_groups,
    features.n_train_groups_positive,
    features.n_validation,
    features.n_validation_positive,
    features.n_validation_groups,
    features.n_validation_groups_positive,
    features.n_test,
    features.n_test_positive,
    features.n_test - features.n_test_positive as n_test_negative,
    features.n_test_groups,
    features.n_test_groups_positive
from features
inner join named_runs as runs on features.run_id = runs.run_id
where runs.superseded_by is null;
