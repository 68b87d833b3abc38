-- one row per pair of neurons or fits that views set side by side: `comparisons` has the interval of their difference
-- The best neuron and each other of its feature's shortlists; the best sparse probe and each baseline; the best neurons of
-- neighbouring checkpoints; each neuron that is best at some checkpoint, and itself at the checkpoint before.
-- probe_id and other_probe_id: as in test_predictions.
create view pairs_to_compare as
with leaders as (
    select
        run_id,
        feature,
        format('{}/{}', layer, neuron) as probe_id
    from best_neuron_per_feature
),

probes as (
    select
        run_id,
        feature,
        metric,
        fit_id
    from baselines
    where variant = 'real'
),

followed as (
    select distinct
        series_id,
        feature,
        format('{}/{}', layer, neuron) as probe_id
    from checkpoint_trajectories
),

steps as (
    select
        series_id,
        feature,
        later_run_id,
        format('{}/{}', later_layer, later_neuron) as later_probe_id,
        earlier_run_id,
        format('{}/{}', earlier_layer, earlier_neuron) as earlier_probe_id
    from checkpoint_changes
)

select
    neuron_rankings.run_id,
    neuron_rankings.feature,
    'mcc' as metric,
    leaders.probe_id,
    neuron_rankings.run_id as other_run_id,
    format('{}/{}', neuron_rankings.layer, neuron_rankings.neuron) as other_probe_id
from neuron_rankings
inner join leaders on neuron_rankings.run_id = leaders.run_id and neuron_rankings.feature = leaders.feature
where neuron_rankings.rank > 1

union all

select
    baselines.run_id,
    baselines.feature,
    baselines.metric,
    probes.fit_id as probe_id,
    baselines.run_id as other_run_id,
    baselines.fit_id as other_probe_id
from baselines
inner join probes
    on baselines.run_id = probes.run_id and baselines.feature = probes.feature and baselines.metric = probes.metric
where baselines.variant <> 'real'

union all

select
    later_run_id as run_id,
    feature,
    'mcc' as metric,
    later_probe_id as probe_id,
    earlier_run_id as other_run_id,
    earlier_probe_id as other_probe_id
from steps

union all

select
    steps.later_run_id as run_id,
    steps.feature,
    'mcc' as metric,
    followed.probe_id,
    steps.earlier_run_id as other_run_id,
    followed.probe_id as other_probe_id
from steps
inner join followed on steps.series_id = followed.series_id and steps.feature = followed.feature
-- where it is the best of both, that pair is above
where followed.probe_id <> steps.later_probe_id or followed.probe_id <> steps.earlier_probe_id;
