-- one row per run, feature and scored layer from which no neuron was shortlisted
-- severity: error
-- why: rankings see shortlisted neurons alone; a layer without any is missing from them unseen
create view check_shortlists as
with counts as (
    select
        run_id,
        feature,
        layer,
        count(*) as n_neurons,
        count(*) filter (where shortlisted) as n_shortlisted
    from neuron_scores
    group by run_id, feature, layer
)

select
    run_id,
    'error' as severity,
    format('{} layer {}', feature, layer) as subject,
    format('0 of {} neurons shortlisted', n_neurons) as found,
    'at least 1' as expected
from counts
where n_shortlisted = 0;
