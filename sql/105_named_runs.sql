-- one row per run: its provenance, under names of model and revision that no other weights have
-- model: its short name; where other models have that too, the last parts of the id that tell it from them (a/final, b/final).
-- revision: as the model's source calls it; where other weights were once found under it (a folder was overwritten), with the
-- first digits of the weights' digest. Both hold within this database.
-- superseded_by: the newest run that answers the same question, where that is another; rankings and checks leave such runs out.
-- requested_revision: what the study asked for (step1000); resolved_revision: what that was (a commit, a version, local).
-- smallest_p_value: what so many permutations can give at the least; it stands for at most.
-- training_step: as the profile gives it, or the number that ends the requested revision. Commits and versions have none.
create view named_runs as
with identified as (
    select
        run_id,
        model as short_name,
        coalesce(spec ->> '$.model.id', model) as model_id,
        revision as source_revision,
        coalesce(spec ->> '$.model.revision', revision) as requested_revision,
        try_cast(spec ->> '$.model.training_step' as bigint) as given_step,
        weights_digest
    from runs
),

models as (
    select distinct
        short_name,
        model_id,
        string_split(rtrim(model_id, '/'), '/') as parts
    from identified
),

endings as (
    select
        models.short_name,
        models.model_id,
        lengths.n_parts,
        array_to_string(models.parts[-lengths.n_parts:], '/') as ending
    from models
    cross join (select unnest(range(1, 65)) as n_parts) as lengths
    where lengths.n_parts <= len(models.parts)
),

shared as (
    select
        short_name,
        model_id,
        n_parts,
        ending,
        count(*) over (partition by short_name, ending) as n_models
    from endings
),

distinctive as (
    select
        short_name,
        model_id,
        arg_min(ending, n_parts) as ending
    from shared
    where n_models = 1
    group by short_name, model_id
),

counted as (
    select
        short_name,
        model_id,
        parts,
        count(*) over (partition by short_name) as n_models
    from models
),

model_names as (
    select
        counted.model_id,
        counted.short_name,
        case
            when counted.n_models = 1 then counted.short_name
            when counted.parts[-1] = counted.short_name then coalesce(distinctive.ending, counted.model_id)
            else format('{} ({})', counted.short_name, coalesce(distinctive.ending, counted.model_id))
        end as model
    from counted
    left join distinctive
        on counted.short_name = distinctive.short_name and counted.model_id = distinctive.model_id
),

answers as (
    select
        runs.run_id,
        first_value(runs.run_id) over (
            partition by coalesce(run_identities.identity, runs.run_id)
            order by runs.created_at desc, runs.run_id
        ) as newest_run_id
    from runs
    left join run_identities on runs.run_id = run_identities.run_id
),

revisions as (
    select
        model_id,
        source_revision,
        count(distinct weights_digest) as n_weights
    from identified
    group by model_id, source_revision
)

select
    runs.run_id,
    runs.study,
    model_names.model,
    identified.model_id,
    case
        when revisions.n_weights = 1 then runs.revision
        else format('{}+{}', runs.revision, left(runs.weights_digest, 8))
    end as revision,
    identified.requested_revision,
    identified.source_revision as resolved_revision,
    case
        when identified.given_step is not null then identified.given_step
        -- a commit, whole or short
        when regexp_full_match(identified.requested_revision, '[0-9a-f]{40}') then null
        when
            regexp_full_match(identified.requested_revision, '[0-9a-f]{7,}')
            and regexp_matches(identified.requested_revision, '[a-f]') then null
        else try_cast(regexp_extract(identified.requested_revision, '(^|[^0-9.])([0-9]+)$', 2) as bigint)
    end as training_step,
    runs.weights_digest,
    runs.tokenizer_digest,
    runs.collection,
    runs.dataset_digest,
    runs.activations_digest,
    runs.probing_digest,
    runs.hook,
    runs.pooling,
    runs.layers,
    runs.n_neurons,
    runs.n_rows,
    runs.n_sequences,
    runs.n_tokens,
    runs.storage_dtype,
    runs.model_dtype,
    runs.attention,
    runs.split_mode,
    runs.seed,
    runs.max_clipped_fraction,
    runs.max_quantisation_error,
    runs.quantisation_error_bound,
    1 / (1 + try_cast(runs.spec ->> '$.probing.n_permutations' as double)) as smallest_p_value,
    runs.spec,
    runs.package_versions,
    runs.created_at,
    nullif(answers.newest_run_id, runs.run_id) as superseded_by
from runs
inner join answers on runs.run_id = answers.run_id
inner join identified on runs.run_id = identified.run_id
inner join model_names
    on identified.model_id = model_names.model_id and identified.short_name = model_names.short_name
inner join revisions
    on identified.model_id = revisions.model_id and identified.source_revision = revisions.source_revision;
