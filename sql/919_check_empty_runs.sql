-- one row per run and what it left nothing of
-- severity: error
-- why: an empty table has no violations, so that a run which wrote nothing would pass every other check
create view check_empty_runs as
with contents as (
    select
        runs.run_id,
        len(runs.layers) as n_layers,
        (select count(*) from features where features.run_id = runs.run_id) as n_features,
        (select count(*) from neuron_scores where neuron_scores.run_id = runs.run_id) as n_scores,
        (select count(*) from probe_fits where probe_fits.run_id = runs.run_id) as n_fits
    from runs
)

select
    run_id,
    'error' as severity,
    'the run' as subject,
    format('{} layers, {} features, {} neuron scores, {} fits', n_layers, n_features, n_scores, n_fits) as found,
    'layers, features, and scores or fits' as expected
from contents
where n_layers = 0 or n_features = 0 or n_scores + n_fits = 0;
