"""Which neurons of a language model respond to a feature, and how sure are we?

The names in `__all__` are the library's front door, in a notebook say; each is loaded when it is first used. Importing the
package itself loads none of torch, duckdb, gurobipy, transformers and great_expectations, and no part of it imports Prefect.
Nothing is defined here but the version: everything else lives in the subpackages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_probing.activations import Selection, extract
    from sparse_probing.config import StudySpec, load_profile
    from sparse_probing.planning import plan_study
    from sparse_probing.probes import METHODS
    from sparse_probing.probes.data import prepare
    from sparse_probing.probes.optimal import fit_optimal, fit_optimal_path
    from sparse_probing.probes.single import score_features, score_neurons
    from sparse_probing.probes.splits import group_split
    from sparse_probing.probes.uncertainty import difference_interval, score_interval
    from sparse_probing.studying import run_study
    from sparse_probing.warehouse import connect

__version__ = "0.1.0"

# Public name to the module that has it.
_MODULES = {
    "METHODS": "probes",
    "Selection": "activations",
    "StudySpec": "config",
    "connect": "warehouse",
    "difference_interval": "probes.uncertainty",
    "extract": "activations",
    "fit_optimal": "probes.optimal",
    "fit_optimal_path": "probes.optimal",
    "group_split": "probes.splits",
    "load_profile": "config",
    "plan_study": "planning",
    "prepare": "probes.data",
    "run_study": "studying",
    "score_features": "probes.single",
    "score_interval": "probes.uncertainty",
    "score_neurons": "probes.single",
}
__all__ = [
    "METHODS",
    "Selection",
    "StudySpec",
    "connect",
    "difference_interval",
    "extract",
    "fit_optimal",
    "fit_optimal_path",
    "group_split",
    "load_profile",
    "plan_study",
    "prepare",
    "run_study",
    "score_features",
    "score_interval",
    "score_neurons",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
