-- one row per run and feature with neurons whose q-value is below their p-value
-- severity: error
-- why: correcting for many comparisons can only make a finding less sure
create view check_q_values as
with counts as (
    select
        run_id,
        feature,
        count(*) as n_neurons,
        arg_min(format('layer {} neuron {}', layer, neuron), q_value - p_value) as worst_neuron,
        arg_min(q_value, q_value - p_value) as worst_q_value,
        arg_min(p_value, q_value - p_value) as worst_p_value
    from neuron_scores
    where q_value < p_value - 1e-6
    group by run_id, feature
)

select
    run_id,
    'error' as severity,
    format('{} {}', feature, worst_neuron) as subject,
    format('q = {:.6f} below p = {:.6f}, and {} more', worst_q_value, worst_p_value, n_neurons - 1) as found,
    'q >= p' as expected
from counts;
