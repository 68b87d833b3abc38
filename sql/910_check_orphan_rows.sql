-- one row per run, table and kind of missing parent
-- severity: error
-- why: a result that leads to no run has no provenance, and joins drop it in silence
create view check_orphan_rows as
with used_runs as (
    select
        'features' as table_name,
        run_id,
        count(*) as n_rows
    from features
    group by run_id
    union all
    select
        'neuron_scores' as table_name,
        run_id,
        count(*) as n_rows
    from neuron_scores
    group by run_id
    union all
    select
        'probe_fits' as table_name,
        run_id,
        count(*) as n_rows
    from probe_fits
    group by run_id
    union all
    select
        'probe_supports' as table_name,
        run_id,
        count(*) as n_rows
    from probe_supports
    group by run_id
),

without_run as (
    select
        used_runs.run_id,
        format('{} without a run', used_runs.table_name) as subject,
        used_runs.n_rows
    from used_runs
    left join runs on used_runs.run_id = runs.run_id
    where runs.run_id is null
),

used_features as (
    select
        'neuron_scores' as table_name,
        run_id,
        feature,
        count(*) as n_rows
    from neuron_scores
    group by run_id, feature
    union all
    select
        'probe_fits' as table_name,
        run_id,
        feature,
        count(*) as n_rows
    from probe_fits
    group by run_id, feature
),

without_feature as (
    select
        used_features.run_id,
        format('{} of {} without a row in features', used_features.table_name, used_features.feature) as subject,
        used_features.n_rows
    from used_features
    left join features
        on used_features.run_id = features.run_id and used_features.feature = features.feature
    where features.run_id is null
),

without_fit as (
    select
        probe_supports.run_id,
        format('probe_supports of {} without a fit', probe_supports.fit_id) as subject,
        count(*) as n_rows
    from probe_supports
    left join probe_fits
        on probe_supports.run_id = probe_fits.run_id and probe_supports.fit_id = probe_fits.fit_id
    where probe_fits.fit_id is null
    group by probe_supports.run_id, probe_supports.fit_id
),

orphans as (
    select
        run_id,
        subject,
        n_rows
    from without_run
    union all
    select
        run_id,
        subject,
        n_rows
    from without_feature
    union all
    select
        run_id,
        subject,
        n_rows
    from without_fit
)

select
    run_id,
    'error' as severity,
    subject,
    format('{} rows', n_rows) as found,
    'none' as expected
from orphans;
