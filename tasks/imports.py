"""What tasks import late, imported by one thread before tasks run side by side.

Large packages load their parts when these are first asked for. Of several threads that ask at once some may find a part half
loaded: their task fails, and only its second try succeeds.
"""

from __future__ import annotations

from importlib import import_module

# What tasks that build datasets, and the library's functions that they call, import inside of functions. (Of tasks that probe
# layers see `runs.imports`.)
FOR_DATASETS = (
    "huggingface_hub",
    "huggingface_hub.errors",
    "pyarrow.parquet",
    "sparse_probing.datasets.build",
    "sparse_probing.models.loading",
)


def import_for_datasets() -> None:
    """Import what several tasks that build datasets need; call it before the first of them begins."""
    for name in FOR_DATASETS:
        import_module(name)
