"""Flow: build and check every dataset that a study needs."""

from __future__ import annotations

from prefect import flow

from flows.futures import results_of, threads
from sparse_probing.config import CollectionSpec, ModelSpec
from tasks.datasets import build_dataset, check_dataset
from tasks.imports import import_for_datasets


@flow(
    name="datasets",
    flow_run_name="datasets of {model.short_name}",
    task_runner=threads(4),
    persist_result=False,
)
def build_datasets(model: ModelSpec, collections: tuple[CollectionSpec, ...]) -> list[str]:
    """Build the collections with the tokenizer of a model that `study` resolved; returns one reference a collection."""
    import_for_datasets()
    built = results_of([build_dataset.submit(model, collection) for collection in collections])
    return [check_dataset(dataset) for dataset in built]
