"""Connections to the published snapshot, which everybody reads, and to the working database, which the loader writes.

No SQL of results lives here: that is in `sql/` and in `reads`.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.settings import load_settings

# Core, parquet, json and icu are in the wheel; anything else would be downloaded at run time.
_CONFIG = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}


def connect(path: str | Path | None = None) -> duckdb.DuckDBPyConnection:
    """Open the published snapshot read-only.

    A connection keeps the snapshot it opened: after a new one is published, close it and connect again. (Within one
    process, connections to the same path share a database until all of them are closed.)

    Parameters
    ----------
    path:
        The snapshot; `Settings.snapshot_path` if absent.

    Raises
    ------
    InputError
        If there is no snapshot at the path, or the file is no DuckDB database.
    """
    snapshot = Path(path) if path is not None else load_settings().snapshot_path
    if not snapshot.is_file():
        raise InputError(
            f"No published results at {snapshot}.",
            remedy="Run `sparse-probing demo` first, or point SPARSE_PROBING_DATA at a folder with results.",
        )
    try:
        connection = duckdb.connect(str(snapshot), read_only=True, config=_CONFIG)
    except duckdb.Error as error:
        raise InputError(
            f"Cannot open {snapshot}: {one_line(error)}.",
            remedy="Name a published snapshot, or load the results again to publish a new one.",
        ) from error
    connection.execute("set timezone = 'UTC'")
    return connection


def open_working(path: Path) -> duckdb.DuckDBPyConnection:
    """Open the working database for writing, creating it if need be; a write-ahead log left behind is replayed.

    Raises
    ------
    ArtifactError
        If another process has it open.
    duckdb.Error
        If the file cannot be read: the caller decides whether to build it anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = duckdb.connect(str(path), config=_CONFIG)
    except duckdb.IOException as error:
        if "lock" not in str(error).lower():
            raise
        raise ArtifactError(
            f"{path} is in use: {one_line(error)}.", remedy="Only one process may load at a time; wait for it to end."
        ) from error
    connection.execute("set timezone = 'UTC'")
    return connection


def one_line(error: BaseException) -> str:
    """A DuckDB error on one line, without the excerpt of the statement and its caret."""
    message = str(error).split("\nLINE ")[0]
    return " ".join(message.split()).rstrip(".")
