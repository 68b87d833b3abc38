"""What of a data folder nobody needs any more, and freeing it on request. Nothing is freed by itself."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow.fs as pafs

from sparse_probing import config
from sparse_probing.schemas import RESULT_KINDS
from sparse_probing.settings import load_settings
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FREED_NAME, MANIFEST_NAME
from sparse_probing.store.results import run_folder
from sparse_probing.store.soundness import SET_ASIDE
from tasks.locations import data_root
from tasks.progress import say
from tasks.warehouse import forget_and_publish, publish_what_is_there

if TYPE_CHECKING:
    from sparse_probing.warehouse.reads import Run


@dataclass(frozen=True)
class Freeable:
    """A file or folder that can go.

    Attributes
    ----------
    why:
        What became of it, in words.
    run_id:
        The superseded run whose results it holds; None where it holds none.
    is_kept_free:
        Whether a note stays in its place, so that no study makes it again that does not need it.
    """

    location: Location
    why: str
    size_bytes: int
    run_id: str | None = None
    is_kept_free: bool = False


def find_freeable(*, activations: bool = False) -> list[Freeable]:
    """Results of superseded runs, what only such runs were made from, and what was set aside because it was damaged.

    Parameters
    ----------
    activations:
        Also activations whose every run is finished and published. A study with other probes extracts them again.
    """
    from sparse_probing.warehouse import connect, reads

    root, settings = data_root(), load_settings()
    found: list[Freeable] = []
    if settings.snapshot_path.is_file():
        with connect(settings.snapshot_path) as connection:
            current, superseded = reads.runs(connection), reads.superseded_runs(connection)
        for run in superseded:
            why = f"superseded by run {run.superseded_by}"
            folders = [run_folder(root, kind, run.run_id) for kind in RESULT_KINDS]
            found += [_freeable(folder, why, run.run_id) for folder in folders if folder.exists()]
        used = {path for run in current for path in _made_from(root, run)}
        for path in sorted({path for run in superseded for path in _made_from(root, run)} - used):
            found.append(_freeable(Location(root.filesystem, path), "used by superseded runs alone"))
        if activations:
            published = {run.run_id for run in (*current, *superseded)}
            found += _activations_of(root, current, published, known={one.location.path for one in found})
    found += [_freeable(child, "was damaged") for child in (root / SET_ASIDE).children()]
    local = Location.open(settings.local_dir)
    databases = [child for child in local.children() if ".unusable-" in child.name]
    return found + [_freeable(child, "a results database that could not be used") for child in databases]


def _activations_of(
    root: Location, runs: Sequence[Run], published: Container[str], *, known: Container[str]
) -> list[Freeable]:
    """Activations that published runs were made from, and that no other run may still need.

    A run at work may read any of them: while one is unfinished, none is freed. Of a run that is finished and not published,
    nobody knows here what it was made from: the same.
    """
    begun = [folder.name for folder in (root / "results" / "_running").children()]
    finished = [folder.name for folder in (root / "results" / "runs").children()]
    unpublished = [run_id for run_id in finished if run_id not in published]
    if begun or unpublished:
        say(
            f"Activations are kept: {len(begun)} run(s) are at work or were interrupted, {len(unpublished)} finished run(s) "
            "are not published."
        )
        return []
    paths = sorted({path for run in runs for path in _made_from(root, run) if "/activations/" in path})
    whole = [path for path in paths if path not in known and (Location(root.filesystem, path) / MANIFEST_NAME).exists()]
    found = [_freeable(Location(root.filesystem, path), "every run of it is published") for path in whole]
    return [replace(one, is_kept_free=True) for one in found]


def free(found: Sequence[Freeable]) -> None:
    """Delete what was found; superseded runs leave the published database first, and it says what was freed."""
    run_ids = sorted({one.run_id for one in found if one.run_id is not None})
    # In this order: a run whose fragments are gone would stay published.
    if run_ids:
        forget_and_publish(run_ids)
    for one in found:
        one.location.delete()
        if one.is_kept_free:
            # Killed before this, a study would extract them again, and be right.
            record = {"freed_at": datetime.now(UTC).isoformat(), "size_bytes": one.size_bytes}
            (one.location / FREED_NAME).write_bytes(json.dumps(record).encode())
    if any(one.is_kept_free for one in found):
        publish_what_is_there()


def _made_from(root: Location, run: Run) -> Iterator[str]:
    """Paths of a run's dataset and activations."""
    folders = [root / "datasets" / config.dataset_name(run.collection, run.dataset_digest)]
    name = config.activations_name(run.dataset_digest, run.activations_digest)
    folders += [model / name for model in (root / "activations").children()]
    yield from (folder.path for folder in folders if folder.exists())


def _freeable(location: Location, why: str, run_id: str | None = None) -> Freeable:
    info = location.filesystem.get_file_info(location.path)
    inside = [info]
    if info.type == pafs.FileType.Directory:
        inside = location.filesystem.get_file_info(pafs.FileSelector(location.path, recursive=True))
    return Freeable(location, why, sum(one.size or 0 for one in inside), run_id)
