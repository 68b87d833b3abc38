"""Flow: extract the activations of every dataset, one after the other, since the device is one."""

from __future__ import annotations

from prefect import flow

from sparse_probing.config import ExtractionSpec, ModelSpec, StudySpec
from tasks.activations import extract_activations
from tasks.datasets import build_dataset, check_dataset, resolve_model


@flow(name="activations", flow_run_name="activations of {model.short_name}", persist_result=False)
def extract_all(model: ModelSpec, datasets: list[str], extractions: tuple[ExtractionSpec, ...]) -> list[list[str]]:
    """Extract one artifact a dataset and hook, one pass a dataset; returns their references by dataset."""
    return [extract_activations(model, dataset, extractions) for dataset in datasets]


def extract_part(study: StudySpec, shard: tuple[int, int] | None) -> list[str]:
    """A study's datasets and activations, or part i of n of them; returns the paths of the activations.

    The bodies of the tasks are called, without a server: parts need nothing in common but the data folder.
    """
    paths: list[str] = []
    for model in study.models:
        resolve_model.fn(model, study.collections, study.extractions)
    for model in study.models:
        for collection in study.collections:
            dataset = check_dataset.fn(build_dataset.fn(model, collection))
            paths += extract_activations.fn(model, dataset, study.extractions, shard)
    return paths
