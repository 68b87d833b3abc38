-- one row per run and feature with shortlisted neurons whose scores come without an interval
-- severity: warning
-- why: without an interval, nobody can tell a better neuron from a luckier one (n_bootstrap = 0, or a split of one group)
create view check_missing_intervals as
with counts as (
    select
        run_id,
        feature,
        count(*) as n_neurons,
        count(*) filter (where test_mcc_low is null or validation_mcc_low is null) as n_without
    from shortlisted_neurons
    group by run_id, feature
)

select
    run_id,
    'warning' as severity,
    feature as subject,
    format('{} of {} shortlisted neurons without an interval', n_without, n_neurons) as found,
    '0' as expected
from counts
where n_without > 0;
