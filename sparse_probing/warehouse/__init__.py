"""The results database in DuckDB: open, load, publish, typed reads, checks.

The one subpackage that imports duckdb and great_expectations; importing the package itself loads neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_probing.warehouse.connection import connect

__all__ = ["connect"]


def __getattr__(name: str) -> Any:
    if name == "connect":
        return importlib.import_module("sparse_probing.warehouse.connection").connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
