-- one row per run and feature whose targets are numbers: its best sparse probe, chosen on validation, beside the dense one
create view best_target_probes as
select
    probe.run_id,
    probe.model,
    probe.revision,
    probe.collection,
    runs.hook,
    probe.feature,
    probe.method,
    probe.k,
    probe.layer,
    probe.validation_score as validation_r2,
    probe.test_score as test_r2,
    probe.test_low as test_r2_low,
    probe.test_high as test_r2_high,
    dense.test_score as dense_test_r2
from baselines as probe
inner join runs on probe.run_id = runs.run_id
left join baselines as dense
    on probe.run_id = dense.run_id and probe.feature = dense.feature and dense.variant = 'dense'
where probe.metric = 'r2' and probe.variant = 'real';
