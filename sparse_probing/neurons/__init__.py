"""What is said of a neuron beyond its scores: statistics, contexts and level counts from one pass, nothing stored.

`collect` makes the pass; it is loaded when first asked for, since it needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_probing.neurons.collecting import Collected, calibrate, collect

__all__ = ["Collected", "calibrate", "collect"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.collecting"), name)
