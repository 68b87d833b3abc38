"""Artifacts held by one owner while they are made, and set aside when they are damaged, so that they are made anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from prefect import task

from sparse_probing import config
from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec, ProbingSpec, StudySpec
from sparse_probing.settings import load_settings
from sparse_probing.store import making as store
from sparse_probing.store import soundness
from sparse_probing.store.filesystem import Location
from tasks.locations import data_root
from tasks.policies import POLICY
from tasks.progress import reporter, say_and_log

if TYPE_CHECKING:
    from sparse_probing.warehouse.reads import Run


def making(folder: Location, *, digest: str | None = None) -> AbstractContextManager[None]:
    """`store.making.making` in this process's data folder."""
    return store.making(data_root(), folder, digest=digest, say=say_and_log)


def mend(folders: Sequence[Location], *, every_byte: bool = False) -> list[str]:
    """`store.making.mend` in this process's data folder."""
    return store.mend(data_root(), folders, every_byte=every_byte, say=say_and_log)


@task(name="set-aside-damage", task_run_name="set aside {path}", **POLICY)
def set_aside_damage(path: str) -> None:
    """`store.making.set_aside_damage` in this process's data folder."""
    store.set_aside_damage(data_root(), path, say=say_and_log)


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
