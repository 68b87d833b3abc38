"""Connections to the published snapshot, which everybody reads, and to the working database, which the loader writes.

No SQL of results lives here: that is in `sql/` and in `reads`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.settings import load_settings
from sparse_probing.warehouse.shared import latest_snapshot

Connection = duckdb.DuckDBPyConnection

# Core, parquet, json and icu are in the wheel; anything else would be downloaded at run time.
_CONFIG = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
_WORD_SECONDS = 30.0
_POLL_SECONDS = 0.5


def connect(path: str | Path | None = None) -> duckdb.DuckDBPyConnection:
    """Open the published snapshot read-only.

    A connection keeps the snapshot it opened: after a new one is published, close it and connect again. (Within one
    process, connections to the same path share a database and its settings until all of them are closed; also those
    that somebody else opened with ``duckdb.connect(path, read_only=True)``.)

    Parameters
    ----------
    path:
        The snapshot; the newest one of the environment's data folder if absent (`shared.latest_snapshot`).

    Raises
    ------
    InputError
        If there is no snapshot at the path, the file is no DuckDB database, someone has it open for writing, or a
        write-ahead log that someone left beside it does not fit it.

    Examples
    --------
    >>> from sparse_probing import connect
    >>> with connect() as results:
    ...     best = results.sql("select feature, layer, neuron, test_mcc from best_neuron_per_feature").fetchall()
    """
    snapshot = Path(path) if path is not None else latest_snapshot(load_settings())
    if not snapshot.is_file():
        raise InputError(
            f"No published results at {snapshot}.",
            remedy="Run `sparse-probing demo` first, or point SPARSE_PROBING_DATA at a folder with results.",
        )
    try:
        # DuckDB shares a file within a process among connections of one configuration only, and most have none.
        connection = duckdb.connect(str(snapshot), read_only=True)
        for option, value in _CONFIG.items():
            connection.execute(f"set {option} = {value}")
    except (duckdb.ConnectionException, duckdb.ResourceInUseException) as error:
        raise InputError(
            f"Cannot open {snapshot}: this process has it open for writing, or with settings of its own.",
            remedy="Close that connection, or open it with duckdb.connect(path, read_only=True) and no config.",
        ) from error
    except duckdb.Error as error:
        raise InputError(f"Cannot open {snapshot}: {one_line(error)}.", remedy=_remedy(snapshot, error)) from error
    connection.execute("set timezone = 'UTC'")
    return connection


def log_path(database: Path) -> Path:
    """Where DuckDB keeps a database's write-ahead log; it replays what it finds there at the next opening."""
    return database.with_name(f"{database.name}.wal")


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
            f"{path} is in use: {one_line(error)}.",
            remedy=f"Close it in {_holder(error)}, or wait for that to end.",
        ) from error
    connection.execute("set timezone = 'UTC'")
    return connection


def wait_until_free(path: Path, *, say: Callable[[str], None], most_seconds: float = 600.0) -> None:
    """Wait until no other process has the working database open; `say` is told who has, at once and every thirty seconds.

    Raises
    ------
    ArtifactError
        If somebody still has it open after `most_seconds`.
    """
    began = time.monotonic()
    word = 0.0
    while path.is_file():
        try:
            open_working(path).close()
            return
        except ArtifactError as error:
            waited = time.monotonic() - began
            if waited > most_seconds:
                raise
            if waited >= word:
                say(f"Waiting for {path} ({waited:.0f} s so far): {error.message.partition(': ')[2]} {error.remedy}")
                word = waited + _WORD_SECONDS
            time.sleep(_POLL_SECONDS)
        except duckdb.Error:
            # The next attempt to open it says what is wrong.
            return


def _remedy(snapshot: Path, error: duckdb.Error) -> str:
    message, log = str(error), log_path(snapshot)
    if "set lock" in message:
        return (
            f"Close it in {_holder(error)}, or wait for that to end; reading needs duckdb -readonly or read_only=True."
        )
    if "wal" in message.lower() and log.exists():
        return f"Close the process that still writes to it, then delete {log}: it was left by a writer to another file of that name."
    return "Publish the results again: sparse-probing repair"


def _holder(error: duckdb.Error) -> str:
    """The process that holds a lock, by the id that DuckDB's message states and, on Linux, its command."""
    match = re.search(r"\(PID (\d+)\)", str(error))
    if match is None:
        return "the process that has it open"
    try:
        command = Path(f"/proc/{match[1]}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"process {match[1]}"
    return f"process {match[1]} ({command})"


def one_line(error: BaseException) -> str:
    """A DuckDB error on one line, without the excerpt of the statement and its caret."""
    message = str(error).split("\nLINE ")[0]
    return " ".join(message.split()).rstrip(".")
