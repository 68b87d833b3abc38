-- one row per run, feature and shortlisted neuron: its rank in the whole model, by validation, then by what train says
-- The one rule of which neuron, and so which layer, is best. Costly probes are fitted on the layer of rank 1.
create view ordered_neurons as
select
    run_id,
    feature,
    layer,
    neuron,
    row_number() over (
        partition by run_id, feature
        order by
            case when not isnan(validation_mcc) then validation_mcc end desc nulls last,
            case when not isnan(train_mcc) then train_mcc end desc nulls last,
            case when not isnan(train_roc_auc) then train_roc_auc end desc nulls last,
            layer,
            neuron
    ) as rank
from kept_scores
where shortlisted;
