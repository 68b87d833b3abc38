"""A study's model as every task of every machine resolves it: one dtype for all that share the data folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparse_probing.config import ModelSpec
from sparse_probing.settings import load_settings
from tasks.locations import data_root

if TYPE_CHECKING:
    from sparse_probing.models.resolved import ResolvedModel


def resolved_model(model: ModelSpec) -> ResolvedModel:
    """The model's files on this machine; the dtype is the first that was chosen in this data folder."""
    from sparse_probing.models import loading

    settings = load_settings()
    return loading.resolve_model(
        model,
        models_dir=settings.models_dir,
        device=settings.device,
        keep_first=lambda name, decide: (data_root() / "choices" / f"{name}.txt").keep_first(decide),
    )
