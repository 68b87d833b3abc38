-- one row per series, feature and pair of neighbouring revisions: what became of the best neuron
-- earlier_neuron_validation_mcc is the earlier best neuron's validation mcc at the later revision, shortlisted or not.
-- difference_low, difference_high: interval of the change of the best neuron's test mcc, on the same rows and by the same
-- draws. changed: it does not hold 0. Null where nothing was compared.
create view checkpoint_changes as
with steps as (
    select
        series_id,
        position_in_series,
        run_id,
        model,
        collection,
        feature,
        hook,
        revision,
        training_step,
        layer,
        neuron,
        direction,
        validation_mcc,
        test_mcc,
        test_mcc_low,
        test_mcc_high
    from checkpoint_trajectories
),

pairs as (
    select
        later.series_id,
        later.position_in_series,
        later.model,
        later.collection,
        later.feature,
        later.hook,
        earlier.revision as earlier_revision,
        later.revision as later_revision,
        earlier.run_id as earlier_run_id,
        later.run_id as later_run_id,
        earlier.layer as earlier_layer,
        earlier.neuron as earlier_neuron,
        earlier.direction as earlier_direction,
        later.layer as later_layer,
        later.neuron as later_neuron,
        later.direction as later_direction,
        earlier.layer = later.layer and earlier.neuron = later.neuron as same_neuron,
        later.validation_mcc - earlier.validation_mcc as validation_mcc_change,
        earlier.test_mcc as earlier_test_mcc,
        later.test_mcc as later_test_mcc,
        later.test_mcc - earlier.test_mcc as test_mcc_change
    from steps as later
    inner join steps as earlier
        on
            later.series_id = earlier.series_id
            and later.feature = earlier.feature
            and later.position_in_series = earlier.position_in_series + 1
)

select
    pairs.series_id,
    pairs.position_in_series,
    pairs.model,
    pairs.collection,
    pairs.feature,
    pairs.hook,
    pairs.earlier_revision,
    pairs.later_revision,
    pairs.earlier_run_id,
    pairs.later_run_id,
    pairs.earlier_layer,
    pairs.earlier_neuron,
    pairs.earlier_direction,
    pairs.later_layer,
    pairs.later_neuron,
    pairs.later_direction,
    pairs.same_neuron,
    neuron_scores.validation_mcc as earlier_neuron_validation_mcc,
    pairs.validation_mcc_change,
    pairs.earlier_test_mcc,
    pairs.later_test_mcc,
    pairs.test_mcc_change,
    comparisons.difference_low,
    comparisons.difference_high,
    comparisons.difference_low > 0 or comparisons.difference_high < 0 as changed
from pairs
left join comparisons
    on
        pairs.later_run_id = comparisons.run_id
        and pairs.feature = comparisons.feature
        and comparisons.metric = 'mcc'
        and format('{}/{}', pairs.later_layer, pairs.later_neuron) = comparisons.probe_id
        and pairs.earlier_run_id = comparisons.other_run_id
        and format('{}/{}', pairs.earlier_layer, pairs.earlier_neuron) = comparisons.other_probe_id
left join neuron_scores
    on
        pairs.later_run_id = neuron_scores.run_id
        and pairs.feature = neuron_scores.feature
        and pairs.earlier_layer = neuron_scores.layer
        and pairs.earlier_neuron = neuron_scores.neuron;
