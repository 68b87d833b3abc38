"""What tasks import late, imported by one thread before tasks run side by side.

Large packages load their parts when these are first asked for. Of several threads that ask at once some may find a part half
loaded: their task fails, and only its second try succeeds.
"""

from __future__ import annotations

from importlib import import_module

# What the bodies of these tasks, and the library's functions that they call, import inside of functions.
FOR_DATASETS = (
    "huggingface_hub",
    "huggingface_hub.errors",
    "pyarrow.parquet",
    "sparse_probing.datasets.build",
    "sparse_probing.models.loading",
)
FOR_PROBES = (
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
)
# Whoever needs one of these and lacks it is told so then.
OPTIONAL = frozenset({"gurobipy"})


def import_for_datasets() -> None:
    """Import what several tasks that build datasets need; call it before the first of them begins."""
    _import(FOR_DATASETS)


def import_for_probes() -> None:
    """Import what several tasks that probe layers need; call it before the first of them begins."""
    _import(FOR_PROBES)


def _import(modules: tuple[str, ...]) -> None:
    for name in modules:
        try:
            import_module(name)
        except ImportError:
            if name not in OPTIONAL:
                raise
