-- one row per run, artifact that it is or was made from, and input of that artifact: from the run down to text and weights
-- Superseded runs are here too. depth: by the longest way, so that every input that is an artifact has a greater one.
-- column depth: steps from the run to the artifact, 0 for the run itself
-- column kind: dataset, activations or run
-- column path: where the artifact lies below the data folder
-- column state: finished, freed on purpose, or missing, when it was last looked at
-- column bytes: sizes of the artifact's files
-- column seconds: that making the artifact took
-- column input_name: what an input is to the artifact
-- column input: path of the artifact that was read, or digest or version of what is none
-- column digest: what the artifact is named after
create view lineage as
with recursive
inputs as (
    select
        path,
        unnest(map_keys(inputs)) as input_name,
        unnest(map_values(inputs)) as input
    from artifacts
),

reached as (
    select
        run_id,
        format('results/runs/{}', run_id) as path,
        0 as depth
    from runs
    union all
    select
        reached.run_id,
        inputs.input as path,
        reached.depth + 1 as depth
    from reached
    inner join inputs on reached.path = inputs.path
    inner join artifacts on inputs.input = artifacts.path
),

placed as (
    select
        run_id,
        path,
        max(depth) as depth
    from reached
    group by run_id, path
)

select
    placed.run_id,
    placed.depth,
    artifacts.kind,
    artifacts.path,
    artifacts.state,
    artifacts.bytes,
    artifacts.seconds,
    artifacts.created_at,
    inputs.input_name,
    inputs.input,
    artifacts.digest
from placed
inner join artifacts on placed.path = artifacts.path
left join inputs on placed.path = inputs.path
order by placed.run_id, placed.depth, placed.path, inputs.input_name;
