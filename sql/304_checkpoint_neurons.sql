-- one row per series, feature, neuron that is a checkpoint's best, and checkpoint: the same neurons through all of training
-- checkpoint_trajectories has another neuron wherever another is best; here each of them is followed from first to last.
-- Scores are of each checkpoint's own one-neuron probe. Their intervals, and rank, are null where its shortlist lacks the neuron.
-- difference_low, difference_high: interval of the neuron's test mcc less that at the checkpoint before, on the same rows and
-- by the same draws. changed: it does not hold 0. Null at the first, and where the shortlist of either lacks the neuron.
-- column is_best: whether the neuron is the feature's best at this checkpoint
create view checkpoint_neurons as
with checkpoints as (
    select
        series_id,
        position_in_series,
        run_id,
        lag(run_id) over (partition by series_id, feature order by position_in_series) as earlier_run_id,
        model,
        model_id,
        collection,
        feature,
        hook,
        revision,
        training_step,
        layer as best_layer,
        neuron as best_neuron
    from checkpoint_trajectories
),

followed as (
    select distinct
        series_id,
        feature,
        best_layer as layer,
        best_neuron as neuron
    from checkpoints
),

followed_scores as (
    select
        checkpoints.series_id,
        checkpoints.position_in_series,
        checkpoints.run_id,
        checkpoints.earlier_run_id,
        checkpoints.model,
        checkpoints.model_id,
        checkpoints.collection,
        checkpoints.feature,
        checkpoints.hook,
        checkpoints.revision,
        checkpoints.training_step,
        followed.layer,
        followed.neuron,
        format('{}/{}', followed.layer, followed.neuron) as probe_id,
        followed.layer = checkpoints.best_layer and followed.neuron = checkpoints.best_neuron as is_best
    from followed
    inner join checkpoints on followed.series_id = checkpoints.series_id and followed.feature = checkpoints.feature
)

select
    followed_scores.series_id,
    followed_scores.position_in_series,
    followed_scores.run_id,
    followed_scores.model,
    followed_scores.model_id,
    followed_scores.collection,
    followed_scores.feature,
    followed_scores.hook,
    followed_scores.revision,
    followed_scores.training_step,
    followed_scores.layer,
    followed_scores.neuron,
    followed_scores.is_best,
    ordered_neurons.rank,
    sign(neuron_scores.coef)::tinyint as direction,
    case when neuron_scores.coef <> 0 then -neuron_scores.intercept::double / neuron_scores.coef end as threshold,
    case when not isnan(neuron_scores.validation_mcc) then neuron_scores.validation_mcc end as validation_mcc,
    neuron_scores.validation_mcc_low,
    neuron_scores.validation_mcc_high,
    case when not isnan(neuron_scores.test_mcc) then neuron_scores.test_mcc end as test_mcc,
    neuron_scores.test_mcc_low,
    neuron_scores.test_mcc_high,
    neuron_scores.q_value,
    comparisons.difference_low,
    comparisons.difference_high,
    comparisons.difference_low > 0 or comparisons.difference_high < 0 as changed
from followed_scores
left join neuron_scores
    on
        followed_scores.run_id = neuron_scores.run_id
        and followed_scores.feature = neuron_scores.feature
        and followed_scores.layer = neuron_scores.layer
        and followed_scores.neuron = neuron_scores.neuron
left join ordered_neurons
    on
        followed_scores.run_id = ordered_neurons.run_id
        and followed_scores.feature = ordered_neurons.feature
        and followed_scores.layer = ordered_neurons.layer
        and followed_scores.neuron = ordered_neurons.neuron
left join comparisons
    on
        followed_scores.run_id = comparisons.run_id
        and followed_scores.feature = comparisons.feature
        and comparisons.metric = 'mcc'
        and followed_scores.probe_id = comparisons.probe_id
        and followed_scores.earlier_run_id = comparisons.other_run_id
        and followed_scores.probe_id = comparisons.other_probe_id;
