-- one row per run, feature and layer that has no results although the run says it was probed
-- severity: error
-- why: the best neuron of the model is only that if every layer was looked at; a lost fragment must not pass unseen
create view check_missing_layers as
with expected_layers as (
    select
        features.run_id,
        features.feature,
        features.task,
        unnest(runs.layers) as layer
    from features
    inner join runs on features.run_id = runs.run_id
),

scored_layers as (
    select distinct
        run_id,
        feature,
        layer,
        'classification' as task
    from neuron_scores
    union all
    select distinct
        run_id,
        feature,
        layer,
        'regression' as task
    from probe_fits
    where variant = 'real' and layer is not null
)

select
    expected_layers.run_id,
    'error' as severity,
    format('{} layer {}', expected_layers.feature, expected_layers.layer) as subject,
    'no results' as found,
    case
        when expected_layers.task = 'classification' then 'a row per neuron in neuron_scores'
        else 'at least one fit in probe_fits'
    end as expected
from expected_layers
left join scored_layers
    on
        expected_layers.run_id = scored_layers.run_id
        and expected_layers.feature = scored_layers.feature
        and expected_layers.layer = scored_layers.layer
        and expected_layers.task = scored_layers.task
where scored_layers.layer is null;
