-- one row per run and feature whose best neuron makes no error on the test split
-- severity: warning
-- why: perfection is more often a leak, a duplicate or a handful of positives than a neuron; look at its contexts first
create view check_too_good as
select
    run_id,
    'warning' as severity,
    format('{} layer {} neuron {}', feature, layer, neuron) as subject,
    format('test mcc 1 with {} positives (prevalence {:.3f})', n_test_positive, prevalence) as found,
    'below 1, or a reason' as expected
from best_neuron_per_feature
where test_mcc >= 0.999999;
