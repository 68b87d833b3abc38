"""Flow: a whole study, from text to published rankings. The flow that deployments and the command line run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from flows.activations import extract_all
from flows.datasets import build_datasets
from flows.failures import retry_first_connections, say_when_the_server_is_away
from flows.probes import probe_all
from flows.publishing import publish_results
from flows.surroundings import prepare_environment
from sparse_probing.config import ModelSpec, StudySpec, load_profile
from sparse_probing.errors import DamageError
from sparse_probing.settings import load_settings
from tasks.datasets import resolve_model
from tasks.logs import log, logged
from tasks.preflight import refuse_the_impossible
from tasks.repair import set_aside_damage

# A disk that spoils more than this while one model is studied is not one to go on with.
MOST_REPAIRS = 5


@flow(name="study", flow_run_name="study {profile}", persist_result=False)
def study(profile: str = "demo", spec: StudySpec | None = None) -> list[str]:
    """Run a study to its end; what is finished already is not computed again.

    Parameters
    ----------
    profile:
        Name of a profile, or path of a TOML file. Ignored when `spec` is given.
    spec:
        The study itself.

    Returns
    -------
    list of str
        Ids of the runs, now published.
    """
    # A worker's process, too: a pool does not set the environment of its runs.
    prepare_environment()
    plan = spec or load_profile(profile)
    refuse_the_impossible(plan)
    with _patience(), logged(f"Study {plan.name} is done") as numbers:
        log(
            f"Study {plan.name}",
            models=len(plan.models),
            collections=len(plan.collections),
            hooks=len(plan.extractions),
            data=load_settings().shown_data,
        )
        run_ids = _run(plan)
        numbers["runs"] = len(run_ids)
        return run_ids


def _run(plan: StudySpec) -> list[str]:
    # Every model, before anything is done with the first.
    for model in plan.models:
        resolve_model(model, plan.collections, plan.extractions)
    return [run_id for model in plan.models for run_id in _of_model(plan, model)]


def _of_model(plan: StudySpec, model: ModelSpec) -> list[str]:
    """One model through all steps. What turns out to be damaged is set aside, and the steps begin anew: they find the rest."""
    for _ in range(MOST_REPAIRS):
        try:
            return _steps(plan, model)
        except DamageError as damage:
            set_aside_damage(damage.path)
    return _steps(plan, model)


def _steps(plan: StudySpec, model: ModelSpec) -> list[str]:
    datasets = build_datasets(model, plan.collections)
    activations = extract_all(model, datasets, plan.extractions)
    run_ids = probe_all(plan, model, datasets, activations)
    publish_results(run_ids, plan.name)
    return run_ids


@contextmanager
def _patience() -> Iterator[None]:
    """Wait for a server that is away for a while; the command line says so by itself, and a worker's run in its log."""
    api_url = get_current_settings().api.url
    if not api_url:
        yield
        return
    retry_first_connections()
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        yield
        return
    with say_when_the_server_is_away(str(api_url), get_run_logger().warning):
        yield


if __name__ == "__main__":
    study()
