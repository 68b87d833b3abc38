-- one row per run, feature and count that does not add up
-- severity: error
-- why: too few neurons in a layer or too many rows in the splits means that something was dropped or counted twice
create view check_row_counts as
with layer_counts as (
    select
        run_id,
        feature,
        layer,
        count(*) as n_scored
    from neuron_scores
    group by run_id, feature, layer
),

chosen_neurons as (
    select
        run_id,
        unnest((spec -> '$.extraction.neurons')::integer[][])[1] as layer
    from runs
),

-- layers of which some neurons were chosen
chosen_counts as (
    select
        run_id,
        layer,
        count(*) as n_chosen
    from chosen_neurons
    group by run_id, layer
),

expected_counts as (
    select
        layer_counts.run_id,
        layer_counts.feature,
        layer_counts.layer,
        layer_counts.n_scored,
        coalesce(chosen_counts.n_chosen, runs.n_neurons) as n_expected
    from layer_counts
    inner join runs on layer_counts.run_id = runs.run_id
    left join chosen_counts
        on layer_counts.run_id = chosen_counts.run_id and layer_counts.layer = chosen_counts.layer
),

neuron_problems as (
    select
        run_id,
        format('{} layer {}: neurons', feature, layer) as subject,
        n_scored::varchar as found,
        n_expected::varchar as expected
    from expected_counts
    where n_scored <> n_expected
),

split_counts as (
    select
        run_id,
        feature,
        unnest(['train', 'validation', 'test']) as split,
        unnest([n_train, n_validation, n_test]) as n_rows,
        unnest([n_train_positive, n_validation_positive, n_test_positive]) as n_positive,
        unnest([n_train_groups, n_validation_groups, n_test_groups]) as n_groups,
        unnest(
            [n_train_groups_positive, n_validation_groups_positive, n_test_groups_positive]
        ) as n_groups_positive
    from features
),

split_problems as (
    select
        run_id,
        format('{} {}: rows and groups', feature, split) as subject,
        format(
            '{} rows ({} positive) in {} groups ({} positive)', n_rows, n_positive, n_groups, n_groups_positive
        ) as found,
        'positives at most all, groups at most rows' as expected
    from split_counts
    where
        n_positive not between 0 and n_rows
        or n_groups not between 0 and n_rows
        or n_groups_positive not between 0 and least(n_groups, n_positive)
),

feature_totals as (
    select
        features.run_id,
        features.feature,
        features.task,
        features.prevalence,
        features.n_train + features.n_validation + features.n_test as n_labelled,
        runs.n_rows,
        least(
            features.n_train_positive / nullif(features.n_train, 0),
            features.n_validation_positive / nullif(features.n_validation, 0),
            features.n_test_positive / nullif(features.n_test, 0)
        ) as lowest_prevalence,
        greatest(
            features.n_train_positive / nullif(features.n_train, 0),
            features.n_validation_positive / nullif(features.n_validation, 0),
            features.n_test_positive / nullif(features.n_test, 0)
        ) as highest_prevalence
    from features
    inner join runs on features.run_id = runs.run_id
),

total_problems as (
    select
        run_id,
        format('{}: labelled rows of all splits', feature) as subject,
        n_labelled::varchar as found,
        format('1 to {} (stored rows)', n_rows) as expected
    from feature_totals
    where n_labelled not between 1 and n_rows
),

prevalence_problems as (
    select
        run_id,
        format('{}: prevalence', feature) as subject,
        format('{:.4f}', prevalence) as found,
        format('{:.4f} to {:.4f} (its splits)', lowest_prevalence, highest_prevalence) as expected
    from feature_totals
    where
        task = 'classification'
        and not coalesce(prevalence between lowest_prevalence - 1e-6 and highest_prevalence + 1e-6, true)
),

problems as (
    select
        run_id,
        subject,
        found,
        expected
    from neuron_problems
    union all
    select
        run_id,
        subject,
        found,
        expected
    from split_problems
    union all
    select
        run_id,
        subject,
        found,
        expected
    from total_problems
    union all
    select
        run_id,
        subject,
        found,
        expected
    from prevalence_problems
)

select
    run_id,
    'error' as severity,
    subject,
    found,
    expected
from problems;
