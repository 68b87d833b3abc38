-- one row per run and feature of a model probed at several revisions: its best neuron, in the order of training
-- A series holds checkpoints of one model id that can be compared: same dataset, hook, neurons, pooling, probing and formats.
-- Revisions without a training step come last.
create view checkpoint_trajectories as
with best as (
    select
        best_neuron_per_feature.run_id,
        best_neuron_per_feature.model,
        best_neuron_per_feature.model_id,
        best_neuron_per_feature.collection,
        best_neuron_per_feature.feature,
        best_neuron_per_feature.hook,
        best_neuron_per_feature.revision,
        best_neuron_per_feature.weights_digest,
        runs.training_step,
        md5(
            concat_ws(
                '|', runs.model_id, runs.dataset_digest, runs.hook, runs.pooling, runs.probing_digest,
                runs.storage_dtype, runs.model_dtype, runs.attention, array_to_string(runs.layers, ','),
                runs.spec ->> '$.extraction.neurons'
            )
        ) as series_id,
        runs.created_at,
        best_neuron_per_feature.layer,
        best_neuron_per_feature.neuron,
        best_neuron_per_feature.direction,
        best_neuron_per_feature.threshold,
        best_neuron_per_feature.validation_mcc,
        best_neuron_per_feature.validation_mcc_low,
        best_neuron_per_feature.validation_mcc_high,
        best_neuron_per_feature.test_mcc,
        best_neuron_per_feature.test_mcc_low,
        best_neuron_per_feature.test_mcc_high,
        best_neuron_per_feature.q_value,
        best_neuron_per_feature.n_test,
        best_neuron_per_feature.n_test_positive,
        best_neuron_per_feature.n_test_groups,
        best_neuron_per_feature.n_test_groups_positive
    from best_neuron_per_feature
    inner join named_runs as runs on best_neuron_per_feature.run_id = runs.run_id
),

placed as (
    select
        run_id,
        series_id,
        model,
        model_id,
        weights_digest,
        collection,
        feature,
        hook,
        revision,
        training_step,
        row_number() over (
            partition by series_id, feature
            order by training_step nulls last, created_at, revision, run_id
        ) as position_in_series,
        count(*) over (partition by series_id, feature) as n_in_series,
        layer,
        neuron,
        direction,
        threshold,
        validation_mcc,
        validation_mcc_low,
        validation_mcc_high,
        test_mcc,
        test_mcc_low,
        test_mcc_high,
        q_value,
        n_test,
        n_test_positive,
        n_test_groups,
        n_test_groups_positive
    from best
)

select
    series_id,
    position_in_series,
    run_id,
    model,
    model_id,
    weights_digest,
    collection,
    feature,
    hook,
    revision,
    training_step,
    layer,
    neuron,
    direction,
    threshold,
    validation_mcc,
    validation_mcc_low,
    validation_mcc_high,
    test_mcc,
    test_mcc_low,
    test_mcc_high,
    q_value,
    n_test,
    n_test_positive,
    n_test_groups,
    n_test_groups_positive
from placed
where n_in_series >= 2;
