"""Flow: extract the activations of every dataset, one after the other, since the device is one."""

from __future__ import annotations

from prefect import flow

from sparse_probing.config import ExtractionSpec, ModelSpec
from tasks.activations import extract_activations


@flow(name="activations", flow_run_name="activations of {model.short_name}", persist_result=False)
def extract_all(model: ModelSpec, datasets: list[str], extractions: tuple[ExtractionSpec, ...]) -> list[list[str]]:
    """Extract one artifact a dataset and hook, one pass a dataset; returns their references by dataset."""
    return [extract_activations(model, dataset, extractions) for dataset in datasets]
