"""What a study's extraction will cost: datasets are built, and a short trial of each is run. Nothing is extracted."""

from __future__ import annotations

from sparse_probing.config import StudySpec
from sparse_probing.settings import Settings
from tasks.datasets import build_dataset, resolve_model
from tasks.estimates import try_extraction

COLUMNS = ("model", "collection", "sequences", "tokens", "rows", "MB a layer", "MB in all", "memory MB", "seconds")


def estimate_study(study: StudySpec, settings: Settings) -> list[tuple[object, ...]]:
    """A row of `COLUMNS` for each model and collection; without a server.

    Raises
    ------
    InputError
        If the data folder has no room for what would be extracted.
    """
    rows: list[tuple[object, ...]] = []
    for model in study.models:
        resolve_model.fn(model, study.collections, study.extractions)
        for collection in study.collections:
            dataset = build_dataset.fn(model, collection)
            cost = try_extraction(model, dataset, study.extractions, settings)
            sizes = [round(size / 1e6, 1) for size in (cost.layer_bytes, cost.stored_bytes, cost.host_bytes)]
            seconds = None if cost.seconds is None else round(cost.seconds, 1)
            names = (model.short_name, collection.collection)
            rows.append((*names, cost.n_sequences, cost.n_tokens, cost.n_rows, *sizes, seconds))
    return rows
