-- one row per run and feature whose targets are numbers: its best sparse probe, chosen on validation, beside the dense one
create view best_target_probes as
select
    probe.run_id,
    probe.model,
    probe.revision,
    probe.collection,
    probed_features.hook,
    probe.feature,
    probe.method,
    probe.k,
    probe.layer,
    probe.validation_r2,
    probe.test_r2,
    probe.test_r2_low,
    probe.test_r2_high,
    dense.test_r2 as dense_test_r2,
    probed_features.n_test,
    probed_features.n_test_groups
from baselines as probe
inner join probed_features on probe.run_id = probed_features.run_id and probe.feature = probed_features.feature
left join baselines as dense
    on probe.run_id = dense.run_id and probe.feature = dense.feature and dense.variant = 'dense'
where probe.metric = 'r2' and probe.variant = 'real';
