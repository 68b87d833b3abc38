"""Result fragments of a probing run: parts while it runs, finished artifacts at its end.

Layout: ``results/_running/<run_id>/<part>/`` with a file a kind, then ``results/<kind>/<run_id>/``, each with a manifest;
``runs`` comes last. A run is finished when every kind is whole. Seconds are in files that no manifest names, so that
the same run always leaves the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import pyarrow as pa

from sparse_probing.errors import DamageError
from sparse_probing.schemas import FIT_TIMES, RESULT_KINDS, TABLES, fragment
from sparse_probing.schemas import PART_KINDS as PART_KINDS
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import MANIFEST_NAME, FileEntry, read_made, read_manifest, write_manifest
from sparse_probing.store.parquet import read_table, write_table
from sparse_probing.store.soundness import is_whole

# A run's id is the first characters of its digest.
RUN_ID_LENGTH = 16


def run_folder(root: Location, kind: str, run_id: str) -> Location:
    """Where a run's finished fragment of one kind lies."""
    return root / "results" / kind / run_id


def running_folder(root: Location, run_id: str) -> Location:
    """Where the parts of an unfinished run lie."""
    return root / "results" / "_running" / run_id


def is_finished(root: Location, run_id: str) -> bool:
    """Whether every fragment of a run is in place and whole."""
    return all(is_whole(run_folder(root, kind, run_id)) for kind in RESULT_KINDS)


def fragment_digests(root: Location, run_id: str) -> dict[str, str]:
    """SHA-256 of the manifest of each fragment that a run has, by kind."""
    found = {kind: (run_folder(root, kind, run_id) / MANIFEST_NAME).find_bytes() for kind in RESULT_KINDS}
    return {kind: hashlib.sha256(data).hexdigest() for kind, data in found.items() if data is not None}


def layer_part(layer: int) -> str:
    """Name of a layer's part of a run."""
    return f"layer-{layer:02d}"


def is_layer_part(part: str) -> bool:
    """Whether a part's name is a layer's."""
    return part.startswith("layer-")


def best_part(layer: int) -> str:
    """Name of the part with what is fitted on a layer only for the features that do best there."""
    return f"best-{layer:02d}"


def part_folder(root: Location, run_id: str, part: str) -> Location:
    """Where a part of an unfinished run lies."""
    return running_folder(root, run_id) / part


def is_part_done(root: Location, run_id: str, part: str) -> bool:
    """Whether a part's results are on disk already, as they were written."""
    return is_whole(part_folder(root, run_id, part))


def write_part(
    root: Location, run_id: str, part: str, tables: Mapping[str, pa.Table], *, seconds: float | None = None
) -> None:
    """Keep the results of one part of a run, and how long they took; its manifest is written last."""
    folder = part_folder(root, run_id, part)
    entries = {f"{kind}.parquet": _write(folder, f"{kind}.parquet", kind, table) for kind, table in tables.items()}
    write_manifest(
        folder,
        kind="results/part",
        digest=run_id,
        spec={},
        files=entries,
        facts={"part": part},
        made={"seconds": seconds},
    )


def part_seconds(root: Location, run_id: str, parts: Iterable[str]) -> float | None:
    """How long parts of a run took in all; None where that is not known of each."""
    found = [read_made(part_folder(root, run_id, part)).seconds for part in parts]
    known = [seconds for seconds in found if seconds is not None]
    return sum(known) if len(known) == len(found) else None


def read_part(root: Location, run_id: str, part: str, kind: str, *, columns: list[str] | None = None) -> pa.Table:
    """What a part holds of one kind, with seconds; no rows if it holds none.

    Parameters
    ----------
    columns:
        Which columns to read, none of them a time; all if None.

    Raises
    ------
    ArtifactError
        If the part is not done.
    DamageError
        If a file of it is not what was written.
    """
    folder = part_folder(root, run_id, part)
    entry = read_manifest(folder).files.get(f"{kind}.parquet")
    if entry is None:
        return TABLES[kind].empty_table() if columns is None else TABLES[kind].empty_table().select(columns)
    table = read_table(folder / f"{kind}.parquet", columns=columns, entry=entry)
    return table if columns is not None else with_times(folder, f"{kind}.parquet", kind, table)


def write_run(
    root: Location,
    run_id: str,
    tables: Mapping[str, Iterable[pa.Table]],
    *,
    spec: Mapping[str, object],
    digest: str,
    seconds: Callable[[], float | None] = lambda: None,
) -> None:
    """Finish a run: one artifact a kind, `runs` last; then forget its parts.

    Tables may come one by one: one at a time is held in memory. `seconds`, asked when all others are written, is how long the
    run took.
    """
    for kind in RESULT_KINDS:
        took = seconds() if kind == "runs" else None
        write_fragment(root, kind, run_id, tables[kind], spec=spec, digest=digest, seconds=took)
    running_folder(root, run_id).delete()


def write_fragment(
    root: Location,
    kind: str,
    run_id: str,
    tables: Iterable[pa.Table],
    *,
    spec: Mapping[str, object],
    digest: str,
    seconds: float | None = None,
) -> None:
    """Write what a run has of one kind, a file a table; `seconds` are those of the whole run."""
    folder = run_folder(root, kind, run_id)
    entries: dict[str, FileEntry] = {}
    for number, table in enumerate(tables):
        name = f"part-{number:05d}.parquet"
        entries[name] = _write(folder, name, kind, table)
    write_manifest(
        folder,
        kind=f"results/{kind}",
        digest=digest,
        spec=spec,
        files=entries,
        facts={"run_id": run_id},
        made={} if seconds is None else {"seconds": seconds},
    )


def with_times(folder: Location, name: str, kind: str, table: pa.Table) -> pa.Table:
    """A table as it was before `_write` took its seconds apart; null where they were lost."""
    if kind != "probe_fits" or "fit_seconds" in table.column_names:
        return table
    try:
        times = read_table(_times(folder, name))
        known = dict(zip(times.column("fit_id").to_pylist(), times.column("fit_seconds").to_pylist(), strict=True))
    except (DamageError, KeyError):
        known = {}
    seconds = pa.array([known.get(fit_id) for fit_id in table.column("fit_id").to_pylist()], pa.float64())
    return table.append_column("fit_seconds", seconds).select(TABLES[kind].names)


def _write(folder: Location, name: str, kind: str, table: pa.Table) -> FileEntry:
    if kind == "probe_fits":
        write_table(_times(folder, name), table.select(FIT_TIMES.names), FIT_TIMES)
    return write_table(folder / name, table.select(fragment(kind).names), fragment(kind))


def _times(folder: Location, name: str) -> Location:
    return folder / f"times-{name}"
