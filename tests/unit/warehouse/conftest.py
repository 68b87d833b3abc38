"""A published snapshot of two small runs."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import connect
from sparse_probing.warehouse.loading import load_results, publish
from tests.sql.rows import write_run


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a, of two features, and b, of one."""
    folder = tmp_path_factory.mktemp("published")
    root = Location.open(folder)
    write_run(root, "a", features=("digit", "capital"))
    write_run(root, "b")
    load_results(folder / "working.duckdb", root)
    publish(folder / "working.duckdb", folder / "results.duckdb")
    return folder / "results.duckdb"


@pytest.fixture
def con(snapshot: Path) -> duckdb.DuckDBPyConnection:
    """Open read-only, anew for each test."""
    return connect(snapshot)
