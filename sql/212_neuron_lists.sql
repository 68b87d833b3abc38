-- one row per list, run, feature and neuron: neuron lists in the columns of those published with arXiv 2305.01610
-- list: all_neurons_of_interest (view neurons_of_interest), or top_mono_neurons (each feature's first neuron on validation).
-- dataset: collection.tokenizer.context.sequences, the tokenizer by the first digits of its digest.
-- Of runs that differ in nothing but probing or text, the newest counts.
create view neuron_lists as
with newest as (
    select
        run_id,
        hook,
        format(
            '{}.{}.{}.{}',
            collection,
            left(tokenizer_digest, 8),
            spec ->> '$.collection.context_length',
            n_sequences
        ) as dataset
    from named_runs
    where superseded_by is null
    qualify
        row_number() over (
            partition by model, revision, collection, hook, pooling
            order by created_at desc, run_id
        ) = 1
),

listed as (
    select
        'all_neurons_of_interest' as list,
        run_id,
        model,
        revision,
        feature,
        layer,
        neuron,
        rank,
        test_mcc,
        test_f1,
        test_precision,
        test_recall,
        coef
    from neurons_of_interest
    union all by name
    select
        'top_mono_neurons' as list,
        run_id,
        model,
        revision,
        feature,
        layer,
        neuron,
        1 as rank,
        test_mcc,
        test_f1,
        test_precision,
        test_recall,
        coef
    from best_neuron_per_feature
)

select
    listed.list,
    listed.run_id,
    listed.revision,
    newest.hook,
    listed.model,
    newest.dataset,
    listed.feature,
    listed.layer,
    listed.neuron,
    listed.rank,
    listed.test_mcc,
    listed.test_f1,
    listed.test_precision,
    listed.test_recall,
    listed.coef
from listed
inner join newest on listed.run_id = newest.run_id;
