"""Modules that the stages of a run import inside functions, to be imported by one thread before several threads run stages.

Large packages load their parts on first use. If several threads do that at once, one may find a part half loaded and fail.
"""

from __future__ import annotations

from importlib import import_module

LATE_IMPORTS = (
    "gurobipy",
    "scipy.stats",
    "sklearn.model_selection",
    "sklearn.svm",
    "sparse_probing.probes.experiments.dense",
    "sparse_probing.probes.experiments.heuristic",
    "sparse_probing.probes.experiments.optimal",
    "sparse_probing.probes.experiments.regression",
    "sparse_probing.probes.experiments.rotation",
    "sparse_probing.probes.experiments.telescopic",
    "sparse_probing.probes.optimal.audits",
    "sparse_probing.runs.stages",
    "sparse_probing.warehouse.selecting",
)
# A method that needs one of these says so itself if it is missing.
OPTIONAL = frozenset({"gurobipy"})


def import_for_stages() -> None:
    """Import `LATE_IMPORTS`; optional packages may be missing."""
    for name in LATE_IMPORTS:
        try:
            import_module(name)
        except ImportError:
            if name not in OPTIONAL:
                raise
