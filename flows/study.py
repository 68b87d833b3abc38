"""Flow: a whole study, from text to published rankings. The flow that deployments and the command line run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prefect import flow

from flows.datasets import datasets
from flows.extraction import extract
from flows.parts import DamageSetAsideError
from flows.probing import probe
from flows.publishing import publish
from flows.starting import Profile, only, plan_of, run_name, started
from sparse_probing.config import ModelSpec, StudySpec
from sparse_probing.errors import CheckFailure, DamageError
from sparse_probing.settings import load_settings
from tasks.datasets import resolve_model
from tasks.logs import log, logged
from tasks.repair import set_aside_damage
from tasks.warehouse import raise_failed_checks

# A disk that spoils more than this while one study runs is not one to go on with.
MOST_REPAIRS = 5


@flow(name="study", flow_run_name=lambda: run_name("study"), persist_result=False)
def study(profile: Profile = "demo", spec: StudySpec | None = None, parts: int = 1) -> list[str]:
    """Run a study to its end; what is finished already is not computed again.

    Parameters
    ----------
    profile:
        Name of a profile that comes with the package, or path of a TOML file. Ignored when `spec` is given.
    spec:
        The study itself.
    parts:
        How many runs of deployments `extract-part` and `probe-part` share the work of each model, on whatever workers take
        them; 1 for this process alone. Results do not depend on it.

    Returns
    -------
    list of str
        Ids of the runs, now published.
    """
    with started(profile, spec) as asked, logged(f"Study {asked.name} is done") as numbers:
        log(
            f"Study {asked.name}",
            models=len(asked.models),
            collections=len(asked.collections),
            hooks=len(asked.extractions),
            parts=parts,
            data=load_settings().shown_data,
        )
        run_ids = _run(asked, parts)
        numbers["runs"] = len(run_ids)
        return run_ids


def _run(spec: StudySpec, parts: int) -> list[str]:
    """All models through all steps. What turns out to be damaged is set aside, and the steps begin anew: they find the rest."""
    for _ in range(MOST_REPAIRS):
        try:
            return _attempt(spec, parts)
        except DamageError as damage:
            set_aside_damage(damage.path)
        except DamageSetAsideError:
            continue
    return _attempt(spec, parts)


def _attempt(spec: StudySpec, parts: int) -> list[str]:
    plan = plan_of(spec)
    if plan.is_finished:
        log(f"Study {spec.name} was finished", runs=len(plan.run_ids))
        raise_failed_checks(list(plan.failed_checks))
        return plan.run_ids
    # Every model that is needed, before anything is done with the first.
    for model in spec.models:
        if not all(pair.is_extracted for pair in plan.of_model(model)):
            resolve_model(model, spec.collections, spec.extractions)
    done = 0
    try:
        for model in spec.models:
            if not all(pair.is_finished for pair in plan.of_model(model)):
                _of_model(spec, model, parts)
            done += 1
    except (DamageError, DamageSetAsideError):
        raise
    except Exception:
        # The models before it are finished: what they gave is seen, whatever became of this one.
        if done:
            with suppress(CheckFailure):
                publish(spec=spec)
        raise
    return publish(spec=spec)


def _of_model(spec: StudySpec, model: ModelSpec, parts: int) -> None:
    """One model's datasets, activations and runs. What is extracted needs no model, and no second look at its text."""
    of_model = only(spec, model)
    left = tuple(pair.collection for pair in plan_of(of_model).pairs if not pair.is_extracted)
    if left:
        datasets(spec=only(spec, model, left))
        extract(spec=only(spec, model, left), parts=parts)
    probe(spec=of_model, parts=parts)


# The flow of each stage that has a command, by its name.
FLOWS: dict[str, Callable[..., Any]] = {
    "study": study,
    "datasets": datasets,
    "extract": extract,
    "probe": probe,
    "publish": publish,
}


if __name__ == "__main__":
    study()
