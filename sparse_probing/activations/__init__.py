"""Activations of a model on a dataset: captured, pooled, quantised, streamed or stored. No probing.

`extract` streams them, `extract_dataset` and `extract_datasets` store them; all are loaded when first asked for, since they need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_probing.activations.extraction import extract_dataset, extract_datasets
    from sparse_probing.activations.plan import Selection
    from sparse_probing.activations.stream import ActivationBatch, ActivationStream, extract

_MODULES = {
    "ActivationBatch": "stream",
    "ActivationStream": "stream",
    "extract": "stream",
    "extract_dataset": "extraction",
    "extract_datasets": "extraction",
    "Selection": "plan",
}
__all__ = ["ActivationBatch", "ActivationStream", "Selection", "extract", "extract_dataset", "extract_datasets"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
