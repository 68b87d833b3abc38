"""Flow: a whole study, from text to published rankings. The flow that deployments and the command line run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
from tasks.warehouse import raise_failed_checks

if TYPE_CHECKING:
    from sparse_probing.planning import PlannedPair, StudyPlan

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
    study_spec = spec or load_profile(profile)
    refuse_the_impossible(study_spec)
    with _patience(), logged(f"Study {study_spec.name} is done") as numbers:
        log(
            f"Study {study_spec.name}",
            models=len(study_spec.models),
            collections=len(study_spec.collections),
            hooks=len(study_spec.extractions),
            data=load_settings().shown_data,
        )
        run_ids = _run(study_spec)
        numbers["runs"] = len(run_ids)
        return run_ids


def _run(spec: StudySpec) -> list[str]:
    plan = _plan(spec)
    if plan.is_finished:
        log(f"Study {spec.name} was finished", runs=len(plan.run_ids))
        raise_failed_checks(list(plan.failed_checks))
        return plan.run_ids
    # Every model that is needed, before anything is done with the first.
    for model in spec.models:
        if not all(pair.is_extracted for pair in plan.of_model(model)):
            resolve_model(model, spec.collections, spec.extractions)
    return [run_id for model in spec.models for run_id in _of_model(spec, model, plan.of_model(model))]


def _plan(spec: StudySpec) -> StudyPlan:
    # Not at the top: Prefect keeps flows to the very end of the process, and DuckDB prints complaints when it is kept that long.
    from sparse_probing.planning import plan_study

    return plan_study(spec, load_settings())


def _of_model(spec: StudySpec, model: ModelSpec, pairs: tuple[PlannedPair, ...]) -> list[str]:
    """One model through all steps. What turns out to be damaged is set aside, and the steps begin anew: they find the rest."""
    for _ in range(MOST_REPAIRS):
        try:
            return _steps(spec, model, pairs)
        except DamageError as damage:
            set_aside_damage(damage.path)
            pairs = _plan(spec.model_copy(update={"models": (model,)})).pairs
    return _steps(spec, model, pairs)


def _steps(spec: StudySpec, model: ModelSpec, pairs: tuple[PlannedPair, ...]) -> list[str]:
    datasets = [str(pair.dataset.path) for pair in pairs]
    activations = [[str(one.path) for one in pair.activations] for pair in pairs]
    # What is extracted needs no model, and no second look at its text.
    left = [place for place, pair in enumerate(pairs) if not pair.is_extracted]
    if left:
        built = build_datasets(model, tuple(pairs[place].collection for place in left))
        extracted = extract_all(model, built, spec.extractions)
        for place, dataset, paths in zip(left, built, extracted, strict=True):
            datasets[place], activations[place] = dataset, paths
    run_ids = probe_all(spec, model, datasets, activations)
    publish_results(run_ids, spec.name)
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
