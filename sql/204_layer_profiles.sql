-- one row per run, feature and layer: the layer's best neuron, by the order of neuron_rankings
create view layer_profiles as
with placed as (
    select
        run_id,
        model,
        revision,
        collection,
        feature,
        hook,
        layer,
        neuron,
        rank,
        row_number() over (partition by run_id, feature, layer order by rank) as place_in_layer,
        direction,
        train_mcc,
        validation_mcc,
        validation_mcc_low,
        validation_mcc_high,
        test_mcc,
        test_mcc_low,
        test_mcc_high,
        q_value
    from neuron_rankings
)

select
    run_id,
    model,
    revision,
    collection,
    feature,
    hook,
    layer,
    neuron,
    rank,
    rank = 1 as is_best_layer,
    direction,
    train_mcc,
    validation_mcc,
    validation_mcc_low,
    validation_mcc_high,
    test_mcc,
    test_mcc_low,
    test_mcc_high,
    q_value
from placed
where place_in_layer = 1;
