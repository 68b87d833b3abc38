"""What was published, and what the published database holds of some runs: to know quickly whether anything is left to do.

The numbers of the runs are read elsewhere (`reads`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from sparse_probing.errors import InputError
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import catalog, score_files
from sparse_probing.warehouse.connection import connect

RECORD_NAME = "published.json"


@dataclass(frozen=True)
class PublishedRuns:
    """What a snapshot holds of the runs that were asked for.

    Attributes
    ----------
    is_of_this_version:
        Whether its views are those of this version of the package, and the files that they read are there.
    fragments:
        SHA-256 of the manifest of each fragment that was loaded, by run and kind.
    checked:
        Runs that checks were recorded of.
    failed_checks:
        A line for each of their checks of severity error that failed.
    """

    is_of_this_version: bool
    fragments: Mapping[str, Mapping[str, str]]
    checked: frozenset[str]
    failed_checks: tuple[str, ...]


def record_publication(working: Path, snapshot: Path, *, copy: Path) -> None:
    """Write down how large and of what time both databases are when a copy of one takes the other's place.

    Raises
    ------
    ArtifactError
        If it cannot be written.
    """
    record = {working.name: _stamp(working), snapshot.name: _stamp(copy)}
    (Location.open(snapshot.parent) / RECORD_NAME).write_bytes(json.dumps(record).encode())


def is_as_published(working: Path, snapshot: Path) -> bool:
    """Whether neither database was written to, replaced or lost since the last was published as the other."""
    try:
        record = json.loads((snapshot.parent / RECORD_NAME).read_bytes())
        return bool(record == {path.name: _stamp(path) for path in (working, snapshot)})
    except (OSError, ValueError):
        return False


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def published_runs(snapshot: Path, run_ids: Sequence[str]) -> PublishedRuns | None:
    """What a snapshot holds of some runs; None if there is no snapshot that can be read, or it is of a version too far off."""
    try:
        with connect(snapshot) as connection:
            return _of_runs(connection, list(run_ids))
    except (InputError, duckdb.Error):
        return None


def lacks_runs(snapshot: Path, root: Location) -> bool:
    """Whether the data folder has finished runs that a snapshot does not hold, by one list of their names."""
    with connect(snapshot) as connection:
        loaded = connection.execute("select distinct run_id from loaded_fragments").fetchall()
    known = {run_id for (run_id,) in loaded}
    return any(folder.name not in known for folder in (root / "results" / "runs").children())


def _of_runs(connection: duckdb.DuckDBPyConnection, run_ids: list[str]) -> PublishedRuns:
    fragments: dict[str, dict[str, str]] = {}
    for run_id, kind, digest in connection.execute(
        "select run_id, kind, manifest_digest from loaded_fragments where list_contains(?, run_id)", [run_ids]
    ).fetchall():
        fragments.setdefault(run_id, {})[kind] = digest
    checked = connection.execute(
        "select distinct run_id from check_results where list_contains(?, run_id)", [run_ids]
    ).fetchall()
    failed = connection.execute(
        """
        select check_name, n_violations, detail from check_results
        where list_contains(?, run_id) and not passed and severity = 'error' order by run_id, check_name
        """,
        [run_ids],
    ).fetchall()
    return PublishedRuns(
        is_of_this_version=catalog.has_todays_views(connection) and score_files.are_there(connection),
        fragments=fragments,
        checked=frozenset(run_id for (run_id,) in checked),
        failed_checks=tuple(f"{name}: {count} violation(s), first: {detail}" for name, count, detail in failed),
    )
