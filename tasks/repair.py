"""Artifacts held by one owner while they are made, and set aside when they are damaged, so that they are made anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prefect import task

from sparse_probing import config
from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec, ProbingSpec, StudySpec
from sparse_probing.settings import load_settings
from sparse_probing.store import soundness
from sparse_probing.store.filesystem import Location
from sparse_probing.store.locks import owned
from tasks.locations import data_root
from tasks.policies import POLICY
from tasks.progress import reporter, say_and_log

if TYPE_CHECKING:
    from sparse_probing.warehouse.reads import Run


@contextmanager
def making(folder: Location, *, digest: str | None = None) -> Iterator[None]:
    """Own an artifact while it is found or made; one that is damaged is set aside first, and so is found missing."""
    with owned(data_root(), folder, say=say_and_log):
        _set_aside_damaged(folder, digest=digest)
        yield


def mend(folders: Sequence[Location], *, every_byte: bool = False) -> list[str]:
    """Set aside those artifacts that are damaged; returns their paths below the data folder.

    Parameters
    ----------
    every_byte:
        Compare all bytes with their digests, not only sizes and what was written to after the artifact was finished.
    """
    root = data_root()
    found = []
    for folder in folders:
        if soundness.find_damage(folder, every_byte=every_byte) is None:
            continue
        with owned(root, folder, say=say_and_log):
            # Whoever owned it may have made it anew meanwhile.
            if _set_aside_damaged(folder, every_byte=every_byte):
                found.append(folder.path.removeprefix(f"{root.path}/"))
    return found


def _set_aside_damaged(folder: Location, *, digest: str | None = None, every_byte: bool = False) -> bool:
    damage = soundness.find_damage(folder, digest=digest, every_byte=every_byte)
    if damage is None:
        return False
    moved = soundness.set_aside(data_root(), folder)
    say_and_log(f"Warning: {damage} Its artifact was moved to {moved}, and is made anew.")
    return True


@task(name="set-aside-damage", task_run_name="set aside {path}", **POLICY)
def set_aside_damage(path: str) -> None:
    """Set aside the artifact that a damaged file belongs to; a file of an unfinished artifact goes alone.

    Nothing happens where another process did so before, or made the artifact anew.
    """
    root = data_root()
    folder = soundness.artifact_of(root, path)
    if folder is not None:
        mend([folder], every_byte=True)
    elif path.startswith(f"{root.path}/"):
        Location(root.filesystem, path).delete()
        say_and_log(f"Warning: {path} was missing or damaged, and is made anew.")


def find_and_set_aside() -> tuple[int, list[str]]:
    """Read every finished artifact of the data folder and set aside the damaged ones; how many there are, and which."""
    folders = list(soundness.artifacts(data_root()))
    advance_to = reporter("Verify", "artifacts")
    found: list[str] = []
    for done, folder in enumerate(folders):
        advance_to(done, len(folders))
        found += mend([folder], every_byte=True)
    advance_to(len(folders), len(folders))
    return len(folders), found


def studies_to_repeat(paths: Sequence[str]) -> tuple[list[StudySpec], list[str]]:
    """The studies that make artifacts anew, by what was published of their runs; and the artifacts of no published run.

    Parameters
    ----------
    paths:
        Paths of artifacts below the data folder.
    """
    from sparse_probing.warehouse import connect, reads

    snapshot = load_settings().snapshot_path
    if not paths or not snapshot.is_file():
        return [], list(paths)
    with connect(snapshot) as connection:
        runs = reads.runs(connection)
    plans: dict[str, StudySpec] = {}
    known: set[str] = set()
    for run in runs:
        mine = [path for path in paths if _is_of(path, run)]
        if mine:
            known.update(mine)
            plan = _study_of(run)
            other = plans.get(_but_collections(plan))
            if other is not None:
                plan = plan.model_copy(update={"collections": (*other.collections, *plan.collections)})
            plans[_but_collections(plan)] = plan
    return list(plans.values()), [path for path in paths if path not in known]


def _is_of(path: str, run: Run) -> bool:
    """Whether a run was made from an artifact, or is one."""
    made_from = (
        config.dataset_name(run.collection, run.dataset_digest),
        config.activations_name(run.dataset_digest, run.activations_digest),
    )
    return path.rsplit("/", 1)[-1] in made_from or run.run_id in path.split("/")


def _study_of(run: Run) -> StudySpec:
    """The study that makes a run, from the run's own record of its specs."""
    spec = json.loads(run.spec)
    return StudySpec(
        name=run.study,
        models=(ModelSpec.model_validate(spec["model"]),),
        collections=(CollectionSpec.model_validate(spec["collection"]),),
        extraction=ExtractionSpec.model_validate(spec["extraction"]),
        probing=ProbingSpec.model_validate(spec["probing"]),
    )


def _but_collections(plan: StudySpec) -> str:
    return config.canonical_json(plan.model_dump(mode="json", exclude={"collections"}))
