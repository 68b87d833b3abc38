"""Flows: extract the activations of a study, and one part of that. The device is one: datasets follow one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import flow

from flows.parts import can_start_parts, mending, run_parts
from flows.starting import Profile, is_nested, only, plan_of, run_name, started
from sparse_probing.config import ModelSpec, StudySpec
from tasks.activations import extract_activations
from tasks.datasets import build_dataset, check_dataset, resolve_model

if TYPE_CHECKING:
    from sparse_probing.planning import PlannedPair


@flow(name="extract", flow_run_name=lambda: run_name("extract"), persist_result=False)
def extract(profile: Profile = "demo", spec: StudySpec | None = None, parts: int = 1) -> list[str]:
    """Extract what a study needs of its models' activations, after building the datasets that are missing.

    Parameters
    ----------
    profile, spec:
        As those of `study`.
    parts:
        How many runs of deployment `extract-part` share the work of each model; 1 for this process alone. Results do not
        depend on it.

    Returns
    -------
    list of str
        References of the activations, by model, collection and hook.
    """
    with started(profile, spec) as study:
        plan = plan_of(study)
        for model in study.models:
            left = [pair for pair in plan.of_model(model) if not pair.is_extracted]
            if not left:
                continue
            collections = tuple(pair.collection for pair in left)
            if not is_nested():
                resolve_model(model, collections, study.extractions)
            datasets = [_dataset(pair) for pair in left]
            if can_start_parts(parts):
                _in_parts(only(study, model, collections), parts)
            else:
                for dataset in datasets:
                    extract_activations(model, dataset, study.extractions)
        return [str(one.path) for pair in plan_of(study).pairs for one in pair.activations]


def _in_parts(study: StudySpec, n_parts: int) -> None:
    """Ranges first, once for all; then parts that need nothing of each other, the last of which finishes the artifacts."""
    if study.extraction.storage_dtype == "uint8":
        run_parts("extract-part", study, [{"part": 0, "n_parts": n_parts, "only_ranges": True}])
    run_parts("extract-part", study, [{"part": part, "n_parts": n_parts} for part in range(n_parts)])


@flow(name="extract-part", flow_run_name="extract part {part} of {n_parts}", persist_result=False)
def extract_part(spec: StudySpec, part: int, n_parts: int, only_ranges: bool = False) -> list[str]:
    """Part `part` of `n_parts`, counted from 0, of every extraction of a study whose datasets are there.

    Parameters
    ----------
    only_ranges:
        Only take the quantisation ranges, which all parts need; `part` is not looked at.

    Returns
    -------
    list of str
        References of the activations; finished, unless other parts are still at work.
    """
    with started("", spec) as study, mending():
        return [
            path
            for model in study.models
            for dataset in _datasets(study, model)
            for path in extract_activations(model, dataset, study.extractions, (part, n_parts), only_ranges)
        ]


def _datasets(study: StudySpec, model: ModelSpec) -> list[str]:
    """References of a model's datasets; built where they are missing, as where a part is run by hand."""
    pairs = plan_of(only(study, model)).pairs
    if not all(pair.dataset.is_finished for pair in pairs):
        resolve_model(model, study.collections, study.extractions)
    return [_dataset(pair) for pair in pairs]


def _dataset(pair: PlannedPair) -> str:
    """A pair's dataset, checked: by the flow that called this one, or now."""
    if pair.dataset.is_finished:
        return str(pair.dataset.path) if is_nested() else check_dataset(str(pair.dataset.path))
    return check_dataset(build_dataset(pair.model, pair.collection))
