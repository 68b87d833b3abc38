"""Flows: probe every layer of every run of a study, layers in parallel on threads, and one part of that."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

from prefect import flow

from flows.futures import results_of, threads
from flows.parts import can_start_parts, mending, run_parts
from flows.starting import Profile, narrow, only, plan_of, run_name, started
from sparse_probing.config import ModelSpec, StudySpec
from sparse_probing.errors import InputError
from tasks.probes import (
    choose_layers,
    finish_run,
    import_for_stages,
    is_finished,
    own_run,
    plan_run,
    probe_best_layer,
    probe_layer,
)

if TYPE_CHECKING:
    from sparse_probing.planning import StudyPlan
    from tasks.probes import PlannedRun

Stage = Literal["layers", "best layers"]
# The sixteen of `probes.METHODS`, as the page of a deployment offers them; a test compares the two.
Method = Literal[
    "dense_probe",
    "enumerate_monosemantic",
    "optimal_sparse_probing",
    "osp_tuning",
    "osp_iterative_pruning",
    "heuristic_sparsity_sweep",
    "fast_heuristic_sparsity_sweep",
    "telescopic_sparsity_sweep",
    "tune_telescoping_sparsity_sweep",
    "rotation_baseline",
    "rotation_baseline_dxd",
    "iterative_pruning_rotation_baseline_dxd",
    "test_osp_heuristic_filtering",
    "compare_feature_selection",
    "dense_regression_probe",
    "heuristic_sparse_regression_sweep",
]


@flow(name="probe", flow_run_name=lambda: run_name("probe"), task_runner=threads(2), persist_result=False)
def probe(
    profile: Profile = "demo",
    spec: StudySpec | None = None,
    parts: int = 1,
    method: Method | None = None,
    features: list[str] | None = None,
    layers: list[int] | None = None,
) -> list[str]:
    """Probe the activations of a study, which are there; runs that are finished are not computed again.

    Parameters
    ----------
    profile, spec:
        As those of `study`.
    parts:
        How many runs of deployment `probe-part` share the layers of each model; 1 for this process alone. Results do not
        depend on it.
    method:
        One probing method alone, on every layer, in place of the study's. With `method`, `features` or `layers` the runs are
        others than the study's, of the same datasets and activations.
    features, layers:
        Features and layers to probe; all if absent.

    Returns
    -------
    list of str
        Ids of the runs.
    """
    with started(profile, spec) as asked:
        study = asked
        if method or features or layers:
            study = narrow(asked, method=method, features=features or (), layers=layers or ())
        return [run_id for model in study.models for run_id in _probe_model(study, model, parts)]


def _probe_model(study: StudySpec, model: ModelSpec, parts: int) -> list[str]:
    plan = plan_of(only(study, model))
    runs = _planned(plan)
    with ExitStack() as owned:
        # In one order in every process, or two could wait for each other.
        for run in sorted({run.run_id: run for run in runs if not run.finished}.values(), key=lambda run: run.run_id):
            owned.enter_context(own_run(run))
        # A process that was waited for has finished it, or left parts.
        unfinished = [run for run in runs if not run.finished and not is_finished(run)]
        if unfinished:
            if can_start_parts(parts):
                _layers_in_parts(only(study, model), parts)
            import_for_stages()
        # What parts have probed is found, and not probed again.
        probed = {run.run_id: [probe_layer.submit(run, layer) for layer in run.layers] for run in unfinished}
        for run in unfinished:
            results_of(probed[run.run_id])
            chosen = choose_layers(run)
            best = [probe_best_layer.submit(run, layer, features, len(chosen)) for layer, features in chosen.items()]
            finish_run(run, results_of(best))
    return plan.run_ids


def _layers_in_parts(study: StudySpec, n_parts: int) -> None:
    stages: tuple[Stage, ...] = ("layers", "best layers")
    for stage in stages:
        run_parts("probe-part", study, [{"part": part, "n_parts": n_parts, "stage": stage} for part in range(n_parts)])


@flow(
    name="probe-part",
    flow_run_name="probe {stage}, part {part} of {n_parts}",
    task_runner=threads(2),
    persist_result=False,
)
def probe_part(spec: StudySpec, part: int, n_parts: int, stage: Stage = "layers") -> int:
    """Part `part` of `n_parts`, counted from 0, of the layers of every run of a study.

    Parameters
    ----------
    stage:
        ``layers``: every layer. ``best layers``, once all of those are probed: what is fitted only where a feature does best.

    Returns
    -------
    int
        How many layers were probed, or found probed.
    """
    with started("", spec) as study, mending():
        n_layers = 0
        for model in study.models:
            runs = [run for run in _planned(plan_of(only(study, model))) if not run.finished]
            if runs:
                import_for_stages()
            for run in runs:
                if stage == "layers":
                    layers = run.layers[part::n_parts]
                    work = [probe_layer.submit(run, layer, len(layers), (part, n_parts)) for layer in layers]
                else:
                    chosen = choose_layers(run)
                    mine = list(chosen)[part::n_parts]
                    work = [
                        probe_best_layer.submit(run, layer, chosen[layer], len(mine), (part, n_parts)) for layer in mine
                    ]
                n_layers += len(results_of(work))
        return n_layers


def _planned(plan: StudyPlan) -> list[PlannedRun]:
    """The runs of a plan that are not finished.

    Raises
    ------
    InputError
        If activations that they need are not there.
    """
    left = [
        (pair, activations)
        for pair in plan.pairs
        for activations, run in zip(pair.activations, pair.runs, strict=True)
        if not run.is_finished
    ]
    missing = [one for _, one in left if not one.is_finished]
    if missing:
        first = missing[0]
        raise InputError(
            f"{len(missing)} activations of {first.model} are not finished, the first of {first.collection} at "
            f"{first.hook}{f': {first.detail}' if first.detail else ''}.",
            remedy="Run: sparse-probing extract --profile PROFILE",
        )
    study = plan.study
    return [
        plan_run(study.name, pair.model, pair.collection, study.probing, str(pair.dataset.path), str(one.path))
        for pair, one in left
    ]
