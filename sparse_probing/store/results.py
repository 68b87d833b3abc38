"""Result fragments: what a probing run wrote, layer by layer while it runs, as finished artifacts at its end.

Layout: ``results/_running/<run_id>/layer-NN/<kind>.parquet`` (finished when its ``done`` file is there), then
``results/<kind>/<run_id>/`` with a manifest each; ``runs`` comes last, so a run that has it is whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from sparse_probing.errors import ArtifactError
from sparse_probing.schemas import TABLES
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FileEntry, find_manifest, write_manifest
from sparse_probing.store.parquet import read_table, write_table

LAYER_KINDS = ("neuron_scores", "probe_fits", "probe_supports")
DONE_NAME = "done"


def run_folder(root: Location, kind: str, run_id: str) -> Location:
    """Where a run's finished fragment of one kind lies."""
    return root / "results" / kind / run_id


def is_finished(root: Location, run_id: str) -> bool:
    """Whether the run's last fragment is in place."""
    return find_manifest(run_folder(root, "runs", run_id)) is not None


def _layer_folder(root: Location, run_id: str, layer: int) -> Location:
    return root / "results" / "_running" / run_id / f"layer-{layer:02d}"


def is_layer_done(root: Location, run_id: str, layer: int) -> bool:
    """Whether a layer's results are on disk already."""
    return (_layer_folder(root, run_id, layer) / DONE_NAME).exists()


def write_layer(root: Location, run_id: str, layer: int, tables: Mapping[str, pa.Table]) -> None:
    """Keep one layer's results; the marker is written last."""
    folder = _layer_folder(root, run_id, layer)
    for kind in LAYER_KINDS:
        write_table(folder / f"{kind}.parquet", tables[kind], TABLES[kind])
    (folder / DONE_NAME).write_bytes(b"")


def read_layers(root: Location, run_id: str, layers: tuple[int, ...]) -> dict[str, list[pa.Table]]:
    """All layers' results, one table a layer and kind.

    Raises
    ------
    ArtifactError
        If a layer is not done.
    """
    tables: dict[str, list[pa.Table]] = {kind: [] for kind in LAYER_KINDS}
    for layer in layers:
        if not is_layer_done(root, run_id, layer):
            raise ArtifactError(f"Run {run_id}: layer {layer} is not probed yet.", remedy="Run the same command again.")
        for kind in LAYER_KINDS:
            tables[kind].append(read_table(_layer_folder(root, run_id, layer) / f"{kind}.parquet"))
    return tables


def write_run(
    root: Location, run_id: str, tables: Mapping[str, list[pa.Table]], *, spec: Mapping[str, object], digest: str
) -> None:
    """Finish a run: one artifact a kind, `runs` last; then forget the layers' working files."""
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
