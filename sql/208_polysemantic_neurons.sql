-- one row per model, revision, hook and neuron that scores a validation mcc of at least 0.5 for two features or more
-- Models are told apart by id and weights, whatever they are called. A feature counts once however many runs probed it.
-- Features that imply each other (all_digits, contains_digit) count as two: look at the list before calling a neuron
-- polysemantic.
create view polysemantic_neurons as
with responses as (
    select
        model,
        model_id,
        revision,
        weights_digest,
        hook,
        layer,
        neuron,
        collection || '.' || feature as qualified_feature,
        arg_max(direction, validation_mcc) as direction,
        max(validation_mcc) as validation_mcc
    from neuron_rankings
    where validation_mcc >= 0.5
    group by model, model_id, revision, weights_digest, hook, layer, neuron, collection, feature
)

select
    model,
    model_id,
    revision,
    weights_digest,
    hook,
    layer,
    neuron,
    count(*) as n_features,
    list(qualified_feature order by validation_mcc desc, qualified_feature) as features,
    list(direction order by validation_mcc desc, qualified_feature) as directions,
    list(validation_mcc order by validation_mcc desc, qualified_feature) as validation_mccs
from responses
group by model, model_id, revision, weights_digest, hook, layer, neuron
having count(*) >= 2;
