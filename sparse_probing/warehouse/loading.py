"""The one writer: merge finished result fragments into the working database, and publish it as a snapshot.

A fragment is a finished artifact folder ``results/<kind>/<run_id>/`` whose Parquet files have the columns of
`schemas.fragment`. What is in the database follows from the fragments alone; nothing is computed here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparse_probing import schemas
from sparse_probing.errors import ArtifactError, DamageError, InputError
from sparse_probing.settings import MOST_SCORES
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location, sync
from sparse_probing.store.manifests import MANIFEST_NAME, Manifest, read_made, read_manifest
from sparse_probing.store.parquet import read_table
from sparse_probing.warehouse import catalog, lineage, score_files
from sparse_probing.warehouse.connection import log_path, one_line
from sparse_probing.warehouse.identities import write_identities
from sparse_probing.warehouse.published import record_publication
from sparse_probing.warehouse.working import copy_verified, discard, open_usable, temporary_beside, writing

# Manifests read side by side: an object store answers in some ten milliseconds.
_READERS = 8


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
    left_out:
        Why a run's fragments were not loaded, by run: what the database held of it is as it was.
    rebuilt_from:
        Where the previous working database was moved because it could not be used; None if it could.
    """

    run_ids: tuple[str, ...] = ()
    n_fragments: int = 0
    n_unchanged: int = 0
    n_rows: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, ArtifactError] = field(default_factory=dict)
    rebuilt_from: Path | None = None


@dataclass(frozen=True)
class _Fragment:
    kind: str
    run_id: str
    folder: Location
    digest: str


def load_results(
    working: Path, root: Location, *, snapshot: Path | None = None, most_scores: int = MOST_SCORES
) -> LoadReport:
    """Merge every finished run that is not loaded yet into the working database.

    A run with a new or changed fragment is replaced as a whole, in one transaction; runs whose fragments are gone stay,
    and so do those of which a fragment is missing or damaged. Tables are created where missing and all views are renewed.
    A working database of another version, or one that cannot be read, is moved aside and built anew: from its own rows,
    what was published, and the fragments.

    Parameters
    ----------
    working:
        The working database, created if need be.
    root:
        The data folder; fragments lie under ``results/<kind>/<run_id>/``.
    snapshot:
        What was published, if anything was.
    most_scores:
        Rows of neuron_scores in the database. With more, all but the shortlisted stay in their fragments, where the data
        folder is local (`score_files`).

    Raises
    ------
    ArtifactError
        If another process has the database open, or the disk is full.
    DamageError
        If the working database turns out to be damaged; `path` is its own.
    """
    with writing(working):
        return _load(working, root, snapshot, most_scores)


def _load(working: Path, root: Location, snapshot: Path | None, most_scores: int) -> LoadReport:
    connection, moved = open_usable(working, snapshot)
    try:
        known = {
            (kind, run_id): digest
            for kind, run_id, digest in connection.execute(
                "select kind, run_id, manifest_digest from loaded_fragments"
            ).fetchall()
        }
        loaded: list[str] = []
        left_out: dict[str, ArtifactError] = {}
        n_rows = dict.fromkeys(schemas.TABLES, 0)
        n_fragments = n_unchanged = 0
        found = _find_fragments(root)
        for run_id, fragments in found.items():
            present = {(fragment.kind, run_id): fragment.digest for fragment in fragments}
            if present == {key: digest for key, digest in known.items() if key[1] == run_id}:
                n_unchanged += len(fragments)
                continue
            try:
                counts = _replace_run(connection, run_id, fragments)
            except ArtifactError as error:
                left_out[run_id] = error
                continue
            loaded.append(run_id)
            n_fragments += len(fragments)
            for kind, count in counts.items():
                n_rows[kind] += count
            _keep_few_scores(connection, root, found, most_scores)
        score_files.refresh(connection, root)
        write_identities(connection)
        lineage.record_artifacts(connection, root, loaded)
    finally:
        connection.close()
    return LoadReport(tuple(loaded), n_fragments, n_unchanged, n_rows, left_out, moved)


def publish(working: Path, snapshot: Path) -> Path | None:
    """Replace the snapshot by a copy of the working database, atomically and only if all of it can be read.

    A connection to the old snapshot keeps it until it is closed; a later connection sees the new one. What someone
    wrote to the old one is lost with it. A write-ahead log of such a writer would keep the new one from being opened, and
    is worth nothing without the old one: it is removed.

    Returns
    -------
    The log that was removed; None where there was none, as there should be.

    Raises
    ------
    ArtifactError
        If there is no working database, another process has it open, or the copy cannot be written.
    DamageError
        If the working database is damaged, with its `path`; the snapshot is as it was.
    """
    if not working.is_file():
        raise ArtifactError(f"No working database at {working}.", remedy="Load results before publishing.")
    temporary: Path | None = None
    try:
        temporary = temporary_beside(snapshot)
        with writing(working):
            copy_verified(working, temporary)
        # In this order: the old snapshot opens without its log; the new one would not open with it.
        log = log_path(snapshot)
        removed = log if log.exists() else None
        # Renaming keeps size and time. A process that is stopped in between leaves a record that does not fit what is there.
        record_publication(working, snapshot, copy=temporary)
        log.unlink(missing_ok=True)
        os.replace(temporary, snapshot)
        sync(snapshot.parent)
        return removed
    except (OSError, duckdb.Error) as error:
        raise ArtifactError(
            f"Cannot publish {working} as {snapshot}: {one_line(error)}.",
            remedy="Free space, or choose another place for the snapshot, then run again.",
        ) from error
    finally:
        if temporary is not None:
            discard(temporary)


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
    with writing(working):
        _write_threshold(working, collection, metric, threshold)


def _write_threshold(working: Path, collection: str, metric: str, threshold: float | None) -> None:
    connection, _ = open_usable(working)
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


def _find_fragments(root: Location) -> dict[str, list[_Fragment]]:
    """The fragments of every run that says it is finished; folders without a manifest are left alone."""
    runs: dict[str, list[_Fragment]] = {}
    folders = [(kind, folder) for kind in schemas.RESULT_KINDS for folder in (root / "results" / kind).children()]
    with ThreadPoolExecutor(_READERS) as pool:
        manifests = list(pool.map(lambda found: (found[1] / MANIFEST_NAME).find_bytes(), folders))
    for (kind, folder), data in zip(folders, manifests, strict=True):
        if data is not None:
            digest = hashlib.sha256(data).hexdigest()
            runs.setdefault(folder.name, []).append(_Fragment(kind, folder.name, folder, digest))
    # A run's `runs` fragment is written last: without it the run is still being written.
    return {run_id: runs[run_id] for run_id in sorted(runs) if any(one.kind == "runs" for one in runs[run_id])}


def _keep_few_scores(
    connection: duckdb.DuckDBPyConnection, root: Location, found: Mapping[str, Sequence[_Fragment]], most_scores: int
) -> None:
    """Leave scores to their fragments, once the database holds more than it should."""
    if catalog.stored_name(connection, score_files.KIND) != score_files.KIND or not score_files.can_be_outside(root):
        return
    if score_files.n_rows_inside(connection) <= most_scores:
        return
    loaded = dict(
        connection.execute(
            "select run_id, manifest_digest from loaded_fragments where kind = ?", [score_files.KIND]
        ).fetchall()
    )
    outside = [
        run_id
        for run_id, fragments in found.items()
        for fragment in fragments
        if fragment.kind == score_files.KIND and loaded.get(run_id) == fragment.digest and _is_todays(fragment)
    ]
    score_files.move_outside(connection, outside)


def _is_todays(fragment: _Fragment) -> bool:
    names = read_manifest(fragment.folder).files
    return all(score_files.fits(pq.read_schema((fragment.folder / name).path)) for name in names)


def _replace_run(connection: duckdb.DuckDBPyConnection, run_id: str, fragments: Sequence[_Fragment]) -> dict[str, int]:
    """Delete what the database holds of a run and insert its fragments, in one transaction; rows by table."""
    missing = sorted(set(schemas.RESULT_KINDS) - schemas.LATER_KINDS - {fragment.kind for fragment in fragments})
    if missing:
        folder = fragments[0].folder
        raise DamageError(f"Run {run_id} has no finished {', '.join(missing)} in {folder}.", path=folder.path)
    counts = {}
    connection.begin()
    try:
        for kind in (*schemas.TABLES, "loaded_fragments"):
            connection.execute(f"delete from {catalog.stored_name(connection, kind)} where run_id = ?", [run_id])
        connection.execute("delete from comparisons where other_run_id = ?", [run_id])
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


def forget_runs(working: Path, run_ids: Sequence[str], *, snapshot: Path | None = None) -> None:
    """Delete what the working database holds of runs. Publish afterwards; their fragments would be loaded again.

    A working database that is gone is made from the snapshot first, as by `load_results`.

    Raises
    ------
    ArtifactError, DamageError
        As `load_results`.
    """
    with writing(working):
        connection, _ = open_usable(working, snapshot)
        try:
            connection.begin()
            for table in (*schemas.TABLES, "loaded_fragments", "run_identities", "score_files"):
                name = catalog.stored_name(connection, table)
                connection.execute(f"delete from {name} where list_contains(?, run_id)", [list(run_ids)])
            connection.execute("delete from comparisons where list_contains(?, other_run_id)", [list(run_ids)])
            catalog.create_scores_view(connection)
            lineage.forget_unused(connection)
            connection.commit()
        finally:
            connection.close()


def _insert_fragment(connection: duckdb.DuckDBPyConnection, fragment: _Fragment) -> int:
    manifest = read_manifest(fragment.folder)
    stated = manifest.facts.get("run_id")
    if stated != fragment.run_id:
        location = fragment.folder / MANIFEST_NAME
        raise DamageError(f"{location} is of run {stated!r}; its folder says {fragment.run_id!r}.", path=location.path)
    columns = ", ".join(schemas.TABLES[fragment.kind].names)
    stored = catalog.stored_name(connection, fragment.kind)
    outside = stored != fragment.kind and _is_todays(fragment)
    condition = " where shortlisted" if outside else ""
    n_rows = 0
    for name in manifest.files:
        table = _read_verified(fragment, manifest, name)
        connection.register("fragment_rows", table)
        try:
            connection.execute(f"insert into {stored} ({columns}) select {columns} from fragment_rows{condition}")
        finally:
            connection.unregister("fragment_rows")
        n_rows += table.num_rows
    return n_rows


def _read_verified(fragment: _Fragment, manifest: Manifest, name: str) -> pa.Table:
    """One Parquet file of a fragment as rows of its table, after bytes, rows, columns, nulls and run_id were compared."""
    location, entry = fragment.folder / name, manifest.files[name]
    expected = schemas.TABLES[fragment.kind]
    table = read_table(location, entry=entry)
    if table.num_rows != entry.n_rows:
        raise _not_a_fragment(fragment, location, f"{table.num_rows} rows; its manifest says {entry.n_rows}")
    table = results.with_times(fragment.folder, name, fragment.kind, table)
    if fragment.kind == "runs" and "created_at" not in table.column_names:
        created = pa.array([read_made(fragment.folder).created_at] * table.num_rows, expected.field("created_at").type)
        table = table.append_column("created_at", created)
    table = _as_today(fragment, location, table)
    empty = [f.name for f in expected if not f.nullable and table.column(f.name).null_count]
    if empty:
        raise _not_a_fragment(fragment, location, f"nulls in {', '.join(empty)}; expected none")
    found = pc.unique(table.column("run_id")).to_pylist()
    if table.num_rows and found != [fragment.run_id]:
        raise _not_a_fragment(fragment, location, f"rows of runs {found[:3]}; expected {fragment.run_id!r} alone")
    return table


def _as_today(fragment: _Fragment, location: Location, table: pa.Table) -> pa.Table:
    """The table of another version with today's columns: what it lacks is null, what is no longer known is left out."""
    expected = schemas.TABLES[fragment.kind]
    lacking = [f.name for f in expected if f.name not in table.column_names and not f.nullable]
    if lacking:
        raise _not_a_fragment(fragment, location, f"no columns {', '.join(lacking)}")
    columns = []
    for one in expected:
        column = table.column(one.name) if one.name in table.column_names else pa.nulls(table.num_rows, one.type)
        try:
            columns.append(column.cast(one.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            found = f"column {one.name} is {column.type}; expected {one.type}"
            raise _not_a_fragment(fragment, location, found) from error
    return pa.table(columns, schema=expected)


def _not_a_fragment(fragment: _Fragment, location: Location, found: str) -> ArtifactError:
    return ArtifactError(
        f"{location} is not a fragment of {fragment.kind}: {found}.",
        remedy="Run its study again with this version: a run of today's replaces it.",
    )
