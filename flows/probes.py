"""Flow: probe every layer of every run, layers in parallel on threads."""

from __future__ import annotations

from contextlib import ExitStack

from prefect import flow

from flows.futures import results_of, threads
from sparse_probing.config import ModelSpec, StudySpec
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


@flow(
    name="probes",
    flow_run_name="probes of {model.short_name}",
    task_runner=threads(2),
    persist_result=False,
)
def probe_all(study: StudySpec, model: ModelSpec, datasets: list[str], activations: list[list[str]]) -> list[str]:
    """Probe one run a collection and hook; returns the ids of the runs."""
    runs = [
        plan_run(study.name, model, collection, study.probing, dataset, extracted)
        for collection, dataset, artifacts in zip(study.collections, datasets, activations, strict=True)
        for extracted in artifacts
    ]
    with ExitStack() as owned:
        # In one order in every process, or two could wait for each other.
        for run in sorted({run.run_id: run for run in runs if not run.finished}.values(), key=lambda run: run.run_id):
            owned.enter_context(own_run(run))
        # A process that was waited for has finished it, or left parts.
        unfinished = [run for run in runs if not run.finished and not is_finished(run)]
        if unfinished:
            import_for_stages()
        probed = {run.run_id: [probe_layer.submit(run, layer) for layer in run.layers] for run in unfinished}
        for run in unfinished:
            results_of(probed[run.run_id])
            chosen = choose_layers(run)
            parts = [probe_best_layer.submit(run, layer, features, len(chosen)) for layer, features in chosen.items()]
            finish_run(run, results_of(parts))
    return [run.run_id for run in runs]
