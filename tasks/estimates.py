"""The trial behind an estimate: a few tokens of a dataset through the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.settings import Settings
from tasks.locations import data_root, folder_collection, located
from tasks.models import resolved_model
from tasks.progress import step

if TYPE_CHECKING:
    from sparse_probing.activations.estimate import Estimate


def try_extraction(
    model: ModelSpec, dataset: str, extractions: tuple[ExtractionSpec, ...], settings: Settings
) -> Estimate:
    """What extracting a finished dataset will cost.

    Raises
    ------
    InputError
        If the data folder has no room for it.
    """
    from sparse_probing.activations import estimate

    with step(f"Try {folder_collection(dataset)}"):
        cost = estimate.estimate(located(dataset), resolved_model(model), extractions, device=settings.device)
    estimate.check_space(cost, data_root(), extractions[0])
    return cost
