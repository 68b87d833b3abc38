"""Flow: probe every layer of every run, layers in parallel on threads."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from sparse_probing.config import ModelSpec, StudySpec
from tasks.probes import finish_run, plan_run, probe_layer
from tasks.references import RunReference


@flow(name="probes", task_runner=ThreadPoolTaskRunner(max_workers=2), persist_result=False)
def probe_all(study: StudySpec, model: ModelSpec, datasets: list[str], activations: list[str]) -> list[str]:
    """Probe one run a collection; returns the ids of the runs."""
    runs: list[RunReference] = [
        plan_run(study.name, model, collection, study.probing, dataset, extracted)
        for collection, dataset, extracted in zip(study.collections, datasets, activations, strict=True)
    ]
    probed = {run.run_id: [probe_layer.submit(run, layer) for layer in run.layers] for run in runs if not run.finished}
    return [finish_run.submit(run, wait_for=probed.get(run.run_id, [])).result() for run in runs]
