-- one row per run, feature and split whose smaller class has fewer than 10 rows
-- severity: warning
-- why: with a handful of positives every score is coarse and its interval wide; with none it is undefined (error)
create view check_small_classes as
with classes as (
    select
        features.run_id,
        features.feature,
        runs.split_mode,
        unnest(['train', 'validation', 'test']) as split,
        unnest([features.n_train, features.n_validation, features.n_test]) as n_rows,
        unnest(
            [features.n_train_positive, features.n_validation_positive, features.n_test_positive]
        ) as n_positive
    from features
    left join runs on features.run_id = runs.run_id
    where features.task = 'classification'
),

smaller as (
    select
        run_id,
        feature,
        split,
        n_rows,
        n_positive,
        least(n_positive, n_rows - n_positive) as n_smaller
    from classes
    -- the reference's split has no validation part
    where not coalesce(split_mode = 'reference' and split = 'validation' and n_rows = 0, false)
)

select
    run_id,
    case when n_smaller <= 0 then 'error' else 'warning' end as severity,
    format('{} {}', feature, split) as subject,
    format('{} positive and {} negative rows', n_positive, n_rows - n_positive) as found,
    'at least 10 of each' as expected
from smaller
where n_smaller < 10;
