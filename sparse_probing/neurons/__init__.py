"""Descriptions of neurons beyond their scores: statistics, contexts and level counts from one pass; no activation is stored.

`collect` runs the pass; it is loaded when it is first used, since it needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_probing.neurons.collecting import Collected, calibrate, collect
    from sparse_probing.neurons.parts import load_collected, save_collected

_MODULES = {
    "Collected": "collecting",
    "calibrate": "collecting",
    "collect": "collecting",
    "load_collected": "parts",
    "save_collected": "parts",
}
__all__ = ["Collected", "calibrate", "collect", "load_collected", "save_collected"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
