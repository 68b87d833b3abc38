"""The one writer: merge finished result fragments into the working database, and publish it as a snapshot.

A fragment is a finished artifact folder ``results/<kind>/<run_id>/`` whose Parquet files have a schema of
`schemas.TABLES`. What is in the database follows from the fragments alone; nothing is computed here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sparse_probing import schemas
from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import MANIFEST_NAME, Manifest, read_manifest
from sparse_probing.store.parquet import read_table
from sparse_probing.warehouse import catalog
from sparse_probing.warehouse.connection import log_path, one_line, open_working

RESULTS_FOLDER = "results"
_TEMPORARY_PREFIX = ".tmp-publish-"
# The system's words, in DuckDB's error when a write finds no room.
_DISK_FULL = os.strerror(errno.ENOSPC)


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes
    ----------
    run_ids:
        Runs loaded or replaced, sorted; the checks have to run for these.
    n_fragments, n_unchanged:
        Fragments merged, and fragments that were there already.
    n_rows:
        Rows merged, by table.
    rebuilt_from:
        Where the previous working database was moved because it could not be used; None if it could.
    """

    run_ids: tuple[str, ...] = ()
    n_fragments: int = 0
    n_unchanged: int = 0
    n_rows: Mapping[str, int] = field(default_factory=dict)
    rebuilt_from: Path | None = None


@dataclass(frozen=True)
class _Fragment:
    kind: str
    run_id: str
    folder: Location
    digest: str


def load_results(working: Path, root: Location) -> LoadReport:
    """Merge every finished fragment that is not loaded yet into the working database.

    A run with a new or changed fragment is replaced as a whole, in one transaction; runs whose fragments are gone stay.
    Tables are created where missing and all views are renewed. A working database that cannot be opened, or whose
    tables are those of another version, is moved aside and built anew from the fragments.

    Parameters
    ----------
    working:
        The working database, created if need be.
    root:
        The data folder; fragments lie under ``results/<kind>/<run_id>/``.

    Raises
    ------
    ArtifactError
        If another process is loading, the disk is full, or a fragment is damaged or of another schema: the message
        names the file. All other runs have been loaded by then (unless the disk is full), and the run of the damaged
        fragment is as it was before.
    """
    with _disk_errors(working):
        return _load(working, root)


def _load(working: Path, root: Location) -> LoadReport:
    connection, moved = _open_usable(working)
    try:
        known = {
            (kind, run_id): digest
            for kind, run_id, digest in connection.execute(
                "select kind, run_id, manifest_digest from loaded_fragments"
            ).fetchall()
        }
        runs = _find_fragments(root)
        loaded: list[str] = []
        damaged: list[ArtifactError] = []
        n_rows = dict.fromkeys(schemas.TABLES, 0)
        n_fragments = n_unchanged = 0
        for run_id, fragments in sorted(runs.items()):
            present = {(fragment.kind, run_id): fragment.digest for fragment in fragments}
            if present == {key: digest for key, digest in known.items() if key[1] == run_id}:
                n_unchanged += len(fragments)
                continue
            try:
                counts = _replace_run(connection, run_id, fragments)
            except ArtifactError as error:
                damaged.append(error)
                continue
            loaded.append(run_id)
            n_fragments += len(fragments)
            for kind, count in counts.items():
                n_rows[kind] += count
    finally:
        connection.close()
    if damaged:
        first = damaged[0]
        more = f" ({len(damaged) - 1} more damaged runs.)" if len(damaged) > 1 else ""
        raise ArtifactError(first.message + more, remedy=first.remedy) from first
    return LoadReport(tuple(loaded), n_fragments, n_unchanged, n_rows, moved)


def publish(working: Path, snapshot: Path) -> Path | None:
    """Replace the snapshot by a copy of the working database, atomically.

    Whoever reads the old snapshot keeps it until closing it; whoever connects afterwards sees the new one. What someone
    wrote to the old one is lost with it. A write-ahead log of such a writer would keep the new one from being opened, and
    is worth nothing without the old one: it is removed.

    Returns
    -------
    The log that was removed; None where there was none, as there should be.

    Raises
    ------
    ArtifactError
        If there is no working database, another process is loading, or the copy cannot be written.
    """
    if not working.is_file():
        raise ArtifactError(f"No working database at {working}.", remedy="Load results before publishing.")
    prefix = f"{_TEMPORARY_PREFIX}{snapshot.name}-"
    temporary = snapshot.parent / f"{prefix}{uuid.uuid4().hex[:8]}"
    try:
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        for leftover in snapshot.parent.glob(f"{prefix}*"):
            leftover.unlink(missing_ok=True)
        connection = open_working(working)
        try:
            connection.execute("checkpoint")
            # The connection stays open while copying: its lock keeps every other writer out.
            shutil.copyfile(working, temporary)
        finally:
            connection.close()
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        # In this order: the old snapshot opens without its log; the new one would not open with it.
        log = log_path(snapshot)
        removed = log if log.exists() else None
        log.unlink(missing_ok=True)
        os.replace(temporary, snapshot)
        return removed
    except (OSError, duckdb.Error) as error:
        raise ArtifactError(
            f"Cannot publish {working} as {snapshot}: {one_line(error)}.",
            remedy="Free space, or load the results again.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def set_threshold(working: Path, collection: str, metric: str, threshold: float | None) -> None:
    """Edit the table behind `neurons_of_interest`; None removes the row. Publish afterwards.

    Parameters
    ----------
    collection:
        Name of a collection, or ``*`` for those without a row of their own.
    metric:
        A ``validation_…`` metric of `schemas.NEURON_METRICS`.

    Raises
    ------
    InputError
        If the metric is none that neurons are compared by.
    """
    known = [f"validation_{name}" for name in schemas.NEURON_METRICS]
    if metric not in known:
        raise InputError(
            f"Threshold metric {metric!r} unknown; known: {', '.join(known)}.",
            remedy="Name one of them: neurons are selected on validation, never on test.",
        )
    with _disk_errors(working):
        _write_threshold(working, collection, metric, threshold)


def _write_threshold(working: Path, collection: str, metric: str, threshold: float | None) -> None:
    connection, _ = _open_usable(working)
    try:
        if threshold is None:
            connection.execute(
                "delete from interest_thresholds where collection = ? and metric = ?", [collection, metric]
            )
        else:
            connection.execute(
                "insert or replace into interest_thresholds (collection, metric, threshold) values (?, ?, ?)",
                [collection, metric, threshold],
            )
    finally:
        connection.close()


def _is_full_disk(error: BaseException) -> bool:
    """Whether it all began with a full disk: rolling back what that has ended already is an error of its own."""
    earlier = error.__cause__ or error.__context__
    return _DISK_FULL in str(error) or (earlier is not None and _is_full_disk(earlier))


@contextlib.contextmanager
def _disk_errors(working: Path) -> Iterator[None]:
    """DuckDB's error of a full disk as one that says what to do."""
    try:
        yield
    except duckdb.Error as error:
        if not _is_full_disk(error):
            raise
        raise ArtifactError(
            f"Cannot write {working}: {_DISK_FULL}.",
            remedy="Free space or choose another data folder, then run again.",
        ) from error


def _open_usable(working: Path) -> tuple[duckdb.DuckDBPyConnection, Path | None]:
    """The working database with today's tables and views; and where an unusable predecessor was moved to."""
    thresholds: list[tuple[str, str, float]] = []
    try:
        connection = open_working(working)
        try:
            catalog.create_tables(connection)
            differences = catalog.table_differences(connection)
            thresholds = connection.execute("select collection, metric, threshold from interest_thresholds").fetchall()
            if not differences:
                catalog.create_views(connection)
                return connection, None
            connection.close()
        except BaseException:
            connection.close()
            raise
    except (duckdb.Error, OSError) as error:
        if _is_full_disk(error):
            raise
        if not _is_damaged(working, error):
            raise ArtifactError(
                f"Cannot open {working}: {one_line(error)}. It was left as it is.",
                remedy="See to the folder's permissions, space and memory, then run again.",
            ) from error
        # Not a database, or a write-ahead log that cannot be replayed: everything in it can be had again.
    moved = _move_aside(working)
    connection = open_working(working)
    try:
        catalog.create_tables(connection)
        catalog.create_views(connection)
        if thresholds:
            connection.execute("delete from interest_thresholds")
            connection.executemany(
                "insert into interest_thresholds (collection, metric, threshold) values (?, ?, ?)", thresholds
            )
        differences = catalog.table_differences(connection)
        if differences:
            raise ArtifactError(
                f"sql/ and the Arrow schemas disagree: {'; '.join(differences)}.", remedy="Reinstall sparse-probing."
            )
    except BaseException:
        connection.close()
        raise
    return connection, moved


def _is_damaged(working: Path, error: BaseException) -> bool:
    """Whether the file is to blame: it can be read and written, and a new database at its side can be made and used."""
    if not isinstance(error, duckdb.Error) or isinstance(error, duckdb.OutOfMemoryException):
        return False
    beside = working.with_name(f"{_TEMPORARY_PREFIX}{working.name}-{uuid.uuid4().hex[:8]}")
    try:
        with working.open("rb+"):
            pass
        connection = open_working(beside)
        try:
            catalog.create_tables(connection)
        finally:
            connection.close()
        return True
    except (duckdb.Error, OSError):
        return False
    finally:
        for suffix in (".wal", ""):
            with contextlib.suppress(OSError):
                beside.with_name(beside.name + suffix).unlink(missing_ok=True)


def _move_aside(working: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    moved = working.with_name(f"{working.name}.unusable-{stamp}")
    for suffix in (".wal", ""):
        old = working.with_name(working.name + suffix)
        if old.exists():
            os.replace(old, moved.with_name(moved.name + suffix))
    return moved


def _find_fragments(root: Location) -> dict[str, list[_Fragment]]:
    """All finished fragments by run; folders without a manifest are unfinished and left alone."""
    runs: dict[str, list[_Fragment]] = {}
    for kind in schemas.TABLES:
        for folder in (root / RESULTS_FOLDER / kind).children():
            manifest = folder / MANIFEST_NAME
            if manifest.exists():
                digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
                runs.setdefault(folder.name, []).append(_Fragment(kind, folder.name, folder, digest))
    # A run's `runs` fragment is written last: without it the run is still being written.
    return {run_id: found for run_id, found in runs.items() if any(one.kind == "runs" for one in found)}


def _replace_run(connection: duckdb.DuckDBPyConnection, run_id: str, fragments: Sequence[_Fragment]) -> dict[str, int]:
    """Delete what the database holds of a run and insert its fragments, in one transaction; rows by table."""
    counts = {}
    connection.begin()
    try:
        for kind in (*schemas.TABLES, "loaded_fragments"):
            connection.execute(f"delete from {kind} where run_id = ?", [run_id])
        for fragment in fragments:
            counts[fragment.kind] = _insert_fragment(connection, fragment)
            connection.execute(
                "insert into loaded_fragments (kind, run_id, manifest_digest, n_rows, loaded_at) "
                "values (?, ?, ?, ?, now())",
                [fragment.kind, run_id, fragment.digest, counts[fragment.kind]],
            )
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    return counts


def _insert_fragment(connection: duckdb.DuckDBPyConnection, fragment: _Fragment) -> int:
    manifest = read_manifest(fragment.folder)
    stated = manifest.facts.get("run_id")
    if stated != fragment.run_id:
        raise ArtifactError(
            f"{fragment.folder / MANIFEST_NAME} is of run {stated!r}; its folder says {fragment.run_id!r}.",
            remedy=f"Delete {fragment.folder} and run again.",
        )
    columns = ", ".join(schemas.TABLES[fragment.kind].names)
    n_rows = 0
    for name in manifest.files:
        table = _read_verified(fragment, manifest, name)
        connection.register("fragment_rows", table)
        try:
            connection.execute(f"insert into {fragment.kind} ({columns}) select {columns} from fragment_rows")
        finally:
            connection.unregister("fragment_rows")
        n_rows += table.num_rows
    return n_rows


def _read_verified(fragment: _Fragment, manifest: Manifest, name: str) -> pa.Table:
    """One Parquet file of a fragment, after its bytes, rows, schema, nulls and run_id have been compared."""
    location, entry = fragment.folder / name, manifest.files[name]
    expected = schemas.TABLES[fragment.kind]
    table = read_table(location, entry=entry)
    problem = catalog.schema_difference(table.schema, expected)
    if problem is None and table.num_rows != entry.n_rows:
        problem = f"{table.num_rows} rows; its manifest says {entry.n_rows}"
    if problem is None:
        empty = [f.name for f in expected if not f.nullable and table.column(f.name).null_count]
        problem = f"nulls in {', '.join(empty)}; expected none" if empty else None
    if problem is None and table.num_rows:
        found = pc.unique(table.column("run_id")).to_pylist()
        problem = (
            None if found == [fragment.run_id] else f"rows of runs {found[:3]}; expected {fragment.run_id!r} alone"
        )
    if problem is not None:
        raise ArtifactError(
            f"{location} is not a fragment of {fragment.kind}: {problem}.",
            remedy=f"Delete {fragment.folder} and run again with this version.",
        )
    return table
