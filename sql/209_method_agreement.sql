-- one row per run, feature, layer, k, step and pair of methods: how far the supports that they chose overlap
-- Rotations and dense probes are left out: the one has directions for neurons, the other no support.
create view method_agreement as
with fits as (
    select
        run_id,
        fit_id,
        feature,
        layer,
        k,
        n_candidates,
        step,
        method,
        ranking,
        method || coalesce(':' || ranking, '') as method_name
    from scored_fits
    where variant = 'real' and not is_dense and not is_rotated and status not in ('failed', 'skipped')
),

pairs as (
    select
        one.run_id,
        one.feature,
        one.layer,
        one.k,
        one.step,
        one.method as method_a,
        one.ranking as ranking_a,
        one.n_candidates as n_candidates_a,
        other.method as method_b,
        other.ranking as ranking_b,
        other.n_candidates as n_candidates_b,
        one.fit_id as fit_a,
        other.fit_id as fit_b
    from fits as one
    inner join fits as other
        on
            one.run_id = other.run_id
            and one.feature = other.feature
            and one.layer is not distinct from other.layer
            and one.k = other.k
            and one.step = other.step
            and one.method_name < other.method_name
),

shared as (
    select
        pairs.run_id,
        pairs.fit_a,
        pairs.fit_b,
        count(*) as n_shared
    from pairs
    inner join probe_supports as support_a
        on pairs.run_id = support_a.run_id and pairs.fit_a = support_a.fit_id
    inner join probe_supports as support_b
        on
            pairs.run_id = support_b.run_id
            and pairs.fit_b = support_b.fit_id
            and support_a.neuron = support_b.neuron
            and support_a.layer is not distinct from support_b.layer
    group by pairs.run_id, pairs.fit_a, pairs.fit_b
),

sizes as (
    select
        run_id,
        fit_id,
        count(*) as n_support
    from probe_supports
    group by run_id, fit_id
),

counted as (
    select
        pairs.run_id,
        pairs.feature,
        pairs.layer,
        pairs.k,
        pairs.step,
        pairs.method_a,
        pairs.ranking_a,
        pairs.n_candidates_a,
        pairs.method_b,
        pairs.ranking_b,
        pairs.n_candidates_b,
        coalesce(shared.n_shared, 0) as n_shared,
        size_a.n_support + size_b.n_support - coalesce(shared.n_shared, 0) as n_union
    from pairs
    inner join sizes as size_a on pairs.run_id = size_a.run_id and pairs.fit_a = size_a.fit_id
    inner join sizes as size_b on pairs.run_id = size_b.run_id and pairs.fit_b = size_b.fit_id
    left join shared
        on pairs.run_id = shared.run_id and pairs.fit_a = shared.fit_a and pairs.fit_b = shared.fit_b
)

select
    counted.run_id,
    runs.model,
    runs.revision,
    runs.collection,
    counted.feature,
    counted.layer,
    counted.k,
    counted.step,
    counted.method_a,
    counted.ranking_a,
    counted.n_candidates_a,
    counted.method_b,
    counted.ranking_b,
    counted.n_candidates_b,
    counted.n_shared,
    counted.n_union,
    counted.n_shared / counted.n_union as jaccard
from counted
inner join named_runs as runs on counted.run_id = runs.run_id
where runs.superseded_by is null;
