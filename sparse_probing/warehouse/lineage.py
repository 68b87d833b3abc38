"""Table `artifacts`: what of the data folder the loaded runs were made from, read off manifests.

View `lineage` asks it who made what. An artifact is read once, when a run that was made from it is loaded; no data file is opened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import duckdb

from sparse_probing import config
from sparse_probing.schemas import RESULT_KINDS
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FREED_NAME, find_manifest, read_made
from sparse_probing.store.results import run_folder
from sparse_probing.warehouse.working import open_usable, writing

Kind = Literal["dataset", "activations", "run"]
# Artifacts read side by side: an object store answers in some ten milliseconds.
_READERS = 8
_COLUMNS = ("path", "kind", "digest", "inputs", "state", "n_files", "bytes", "seconds", "created_at")


@dataclass(frozen=True)
class _Artifact:
    """A row of `artifacts`; `run_ids` are the runs that it is, or was made from, which no column holds."""

    path: str
    kind: Kind
    digest: str | None
    inputs: Mapping[str, str]
    state: str = "missing"
    n_files: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    created_at: datetime | None = None
    run_ids: set[str] = field(default_factory=set)


def record_artifacts(
    connection: duckdb.DuckDBPyConnection, root: Location, loaded: Collection[str] = (), *, every: bool = False
) -> None:
    """Bring `artifacts` to what the runs of the working database were made from; rows that no run needs go.

    Read are artifacts without a row, those of `loaded` runs that were freed or missing, and these runs themselves.

    Parameters
    ----------
    loaded:
        Ids of the runs that were loaded or replaced just now.
    every:
        Look at all of them again, as after some were freed.
    """
    needed = _needed(connection)
    names = ", ".join(_COLUMNS)
    stored = connection.execute(f"select {names} from artifacts").fetchall()
    known = {row[0]: dict(zip(_COLUMNS, row, strict=True)) for row in stored}
    ours = set(loaded)
    wanted = [
        one
        for path, one in needed.items()
        if every
        or path not in known
        or (one.run_ids & ours and (one.kind == "run" or known[path]["state"] != "finished"))
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(lambda one: _looked_at(one, root, known.get(one.path)), wanted))
    replaced = [one.path for one in found]
    rows = [[getattr(one, name) for name in _COLUMNS] for one in found]
    connection.begin()
    try:
        connection.execute("delete from artifacts where list_contains(?, path)", [replaced])
        _forget(connection, needed)
        if rows:
            connection.executemany(f"insert into artifacts ({names}) values ({', '.join('?' * len(_COLUMNS))})", rows)
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def forget_unused(connection: duckdb.DuckDBPyConnection) -> None:
    """Delete the rows of artifacts that no run of the working database was made from, in the caller's transaction."""
    _forget(connection, _needed(connection))


def look_again(working: Path, root: Location, *, snapshot: Path | None = None) -> None:
    """Find out anew which artifacts are there.

    Raises
    ------
    ArtifactError, DamageError
        As `loading.load_results`.
    """
    with writing(working):
        connection, _ = open_usable(working, snapshot)
        try:
            record_artifacts(connection, root, every=True)
        finally:
            connection.close()


def _forget(connection: duckdb.DuckDBPyConnection, needed: Collection[str]) -> None:
    connection.execute("delete from artifacts where not list_contains(?::varchar[], path)", [list(needed)])


def _needed(connection: duckdb.DuckDBPyConnection) -> dict[str, _Artifact]:
    """What the runs were made from as far as their own rows tell, by path."""
    needed: dict[str, _Artifact] = {}
    for run_id, model, revision, collection, dataset, activations, weights, tokenizer, created_at in connection.execute(
        "select run_id, model, revision, collection, dataset_digest, activations_digest, weights_digest, "
        "tokenizer_digest, created_at from runs order by run_id"
    ).fetchall():
        dataset_path = f"datasets/{config.dataset_name(collection, dataset)}"
        name = config.activations_name(dataset, activations)
        activations_path = f"activations/{config.model_name(model, revision)}/{name}"
        run_path = f"results/runs/{run_id}"
        of_run = {"dataset": dataset_path, "activations": activations_path}
        for one in (
            _Artifact(dataset_path, "dataset", dataset, {"tokenizer_digest": tokenizer}),
            _Artifact(activations_path, "activations", activations, {"dataset": dataset_path, "weights": weights}),
            _Artifact(run_path, "run", None, of_run, created_at=created_at),
        ):
            needed.setdefault(one.path, one).run_ids.add(run_id)
    return needed


def _looked_at(artifact: _Artifact, root: Location, known: Mapping[str, Any] | None) -> _Artifact:
    """The artifact as its manifests describe it; of one that is not there, what was known of it."""
    folder = root / artifact.path
    manifest = find_manifest(folder, digest=artifact.digest)
    if manifest is None:
        is_freed = artifact.kind == "activations" and (folder / FREED_NAME).exists()
        earlier = artifact if known is None else replace(artifact, **known)
        return replace(earlier, state="freed" if is_freed else "missing")
    manifests = [manifest]
    if artifact.kind == "run":
        others = (find_manifest(run_folder(root, kind, folder.name)) for kind in RESULT_KINDS if kind != "runs")
        manifests += [one for one in others if one is not None]
    files = [entry for one in manifests for entry in one.files.values()]
    made = read_made(folder)
    return replace(
        artifact,
        digest=manifest.digest,
        # Artifacts by their paths, as the run's row names them; the rest as the manifest has it.
        inputs={
            **manifest.inputs,
            **{name: at for name, at in artifact.inputs.items() if name in ("dataset", "activations")},
        },
        state="finished",
        n_files=len(files),
        bytes=sum(entry.size_bytes for entry in files),
        seconds=made.seconds,
        created_at=made.created_at,
    )
