-- one row per table and key that occurs more than once
-- severity: error
-- why: a row that is there twice counts twice in every ranking and curve, and a join over it multiplies
create view check_duplicate_keys as
with keys as (
    select
        run_id,
        'runs' as table_name,
        run_id as key,
        count(*) as n_rows
    from runs
    group by run_id
    having count(*) > 1
    union all
    select
        run_id,
        'features' as table_name,
        feature as key,
        count(*) as n_rows
    from features
    group by run_id, feature
    having count(*) > 1
    union all
    select
        run_id,
        'neuron_scores' as table_name,
        format('{} layer {} neuron {}', feature, layer, neuron) as key,
        count(*) as n_rows
    from neuron_scores
    group by run_id, feature, layer, neuron
    having count(*) > 1
    union all
    select
        run_id,
        'probe_fits' as table_name,
        fit_id as key,
        count(*) as n_rows
    from probe_fits
    group by run_id, fit_id
    having count(*) > 1
    union all
    select
        run_id,
        'probe_supports' as table_name,
        format('{} layer {} neuron {}', fit_id, coalesce(layer, -1), neuron) as key,
        count(*) as n_rows
    from probe_supports
    group by run_id, fit_id, layer, neuron
    having count(*) > 1
)

select
    run_id,
    'error' as severity,
    format('{} {}', table_name, key) as subject,
    format('{} rows', n_rows) as found,
    '1 row' as expected
from keys;
