"""Result fragments: what a probing run wrote, part by part while it runs, as finished artifacts at its end.

Layout: ``results/_running/<run_id>/<part>/<kind>.parquet`` (finished when the file ``done``, with their digests, is there),
then ``results/<kind>/<run_id>/`` with a manifest each; ``runs`` comes last, so a run that has it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from sparse_probing.errors import ArtifactError
from sparse_probing.schemas import TABLES
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FileEntry, find_manifest, write_manifest
from sparse_probing.store.parquet import read_table, write_table

PART_KINDS = ("neuron_scores", "probe_fits", "probe_supports")
DONE_NAME = "done"


def run_folder(root: Location, kind: str, run_id: str) -> Location:
    """Where a run's finished fragment of one kind lies."""
    return root / "results" / kind / run_id


def is_finished(root: Location, run_id: str) -> bool:
    """Whether the run's last fragment is in place."""
    return find_manifest(run_folder(root, "runs", run_id)) is not None


def layer_part(layer: int) -> str:
    """Name of a layer's part of a run."""
    return f"layer-{layer:02d}"


def best_part(layer: int) -> str:
    """Name of the part with what is fitted on a layer only for the features that do best there."""
    return f"best-{layer:02d}"


def _part_folder(root: Location, run_id: str, part: str) -> Location:
    return root / "results" / "_running" / run_id / part


def is_part_done(root: Location, run_id: str, part: str) -> bool:
    """Whether a part's results are on disk already."""
    return (_part_folder(root, run_id, part) / DONE_NAME).exists()


def write_part(root: Location, run_id: str, part: str, tables: Mapping[str, pa.Table]) -> None:
    """Keep the results of one part of a run; the marker is written last."""
    folder = _part_folder(root, run_id, part)
    entries = {kind: write_table(folder / f"{kind}.parquet", table, TABLES[kind]) for kind, table in tables.items()}
    done = {kind: entry.model_dump() for kind, entry in entries.items()}
    (folder / DONE_NAME).write_bytes(json.dumps(done).encode())


def read_parts(root: Location, run_id: str, parts: Sequence[str]) -> dict[str, list[pa.Table]]:
    """The results of parts, one table a part and kind.

    Raises
    ------
    ArtifactError
        If a part is not done, or a file of it is not what was written.
    """
    tables: dict[str, list[pa.Table]] = {kind: [] for kind in PART_KINDS}
    for part in parts:
        if not is_part_done(root, run_id, part):
            raise ArtifactError(f"Run {run_id}: {part} is not probed yet.", remedy="Run the same command again.")
        folder = _part_folder(root, run_id, part)
        for kind, entry in json.loads((folder / DONE_NAME).read_bytes()).items():
            tables[kind].append(read_table(folder / f"{kind}.parquet", entry=FileEntry.model_validate(entry)))
    return tables


def write_run(
    root: Location, run_id: str, tables: Mapping[str, list[pa.Table]], *, spec: Mapping[str, object], digest: str
) -> None:
    """Finish a run: one artifact a kind, `runs` last; then forget its parts."""
    kinds = [kind for kind in tables if kind != "runs"] + ["runs"]
    for kind in kinds:
        folder = run_folder(root, kind, run_id)
        entries: dict[str, FileEntry] = {}
        for number, table in enumerate(tables[kind]):
            name = f"part-{number:05d}.parquet"
            entries[name] = write_table(folder / name, table, TABLES[kind])
        write_manifest(
            folder, kind=f"results/{kind}", digest=digest, spec=spec, files=entries, facts={"run_id": run_id}
        )
    (root / "results" / "_running" / run_id).delete()
