"""The checkpoints of a model in training: revisions of a hub repository, or subfolders of a local folder.

Only names and their order; resolving one of them is `loading`'s work.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sparse_probing.config import CheckpointsSpec, ModelSpec
from sparse_probing.errors import InputError
from sparse_probing.models.complete import why_incomplete
from sparse_probing.models.sources import is_hub_id, training_step
from sparse_probing.settings import user_path


@dataclass(frozen=True)
class Checkpoint:
    """One revision of a model, and the training step that its name gives."""

    revision: str
    step: int


def list_checkpoints(spec: ModelSpec) -> list[Checkpoint]:
    """Checkpoints of a model in order of training step.

    A hub repository's are its branches and tags named ``stepN``, ``checkpoint-N``, …; a local folder's are its
    subfolders of such names that hold a whole model: one still being written lacks a shard, or the end of a file.

    Raises
    ------
    InputError
        If the hub cannot be asked, or the model is neither a repository nor a folder.
    """
    if is_hub_id(spec):
        names = list(_hub_refs(spec.id))
    else:
        folder = user_path(spec.id)
        if not folder.is_dir():
            raise InputError(
                f"Model {spec.id!r} is no folder; checkpoints are its subfolders.",
                remedy="Name a folder that holds step0, step1000, … or a hub id.",
            )
        names = [
            path.name
            for path in folder.iterdir()
            if path.is_dir() and training_step(path.name) is not None and why_incomplete(path) is None
        ]
    found = {Checkpoint(name, step) for name in names if (step := training_step(name)) is not None}
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.revision))


@dataclass(frozen=True)
class Sighting:
    """What a look at one checkpoint saw.

    Attributes
    ----------
    name:
        Of the subfolder, branch or tag.
    step:
        The training step that the name gives; None if it gives none.
    revision:
        What a `ModelSpec` names: the subfolder, or the commit that the branch or tag pointed to.
    fingerprint:
        Changes with any file of the checkpoint: a digest of names, sizes and times of writing, or the commit.
    incomplete:
        What the checkpoint lacks, in words; empty if it is whole.
    """

    name: str
    step: int | None
    revision: str
    fingerprint: str
    incomplete: str = ""


def look(checkpoints: CheckpointsSpec) -> list[Sighting]:
    """Every checkpoint whose name matches, by training step; those that lie closer than `every` steps are left out.

    Raises
    ------
    InputError
        If the hub cannot be asked, or the folder is not there.
    """
    if checkpoints.hub is not None:
        refs = _hub_refs(checkpoints.hub).items()
        seen = [Sighting(name, training_step(name), commit, commit) for name, commit in refs]
        # A repository has branches that are no checkpoints.
        seen = [one for one in seen if one.step is not None]
    else:
        folder = user_path(str(checkpoints.folder))
        if not folder.is_dir():
            raise InputError(
                f"Folder of checkpoints {folder.absolute()} is not there.",
                remedy="Make it, or mend checkpoints.folder.",
            )
        seen = [_sighting(path) for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    matching = [one for one in seen if fnmatch.fnmatchcase(one.name, checkpoints.pattern)]
    chosen: list[Sighting] = []
    last: int | None = None
    for one in sorted(matching, key=lambda one: (one.step is None, one.step or 0, one.name)):
        if one.step is not None and last is not None and last < one.step < last + checkpoints.every:
            continue
        last = one.step if one.step is not None else last
        chosen.append(one)
    return chosen


def _sighting(folder: Path) -> Sighting:
    step = training_step(folder.name)
    if step is None:
        incomplete = "its name gives no training step, such as step1000 or checkpoint-1000"
    else:
        incomplete = why_incomplete(folder) or ""
    return Sighting(folder.name, step, folder.name, _fingerprint(folder), incomplete)


def _fingerprint(folder: Path) -> str:
    state = []
    for path in sorted(folder.rglob("*")):
        # What goes away between the listing and the look is one more change.
        with suppress(OSError):
            found = path.stat()
            if stat.S_ISREG(found.st_mode):
                state.append([str(path.relative_to(folder)), found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _hub_refs(repository: str) -> dict[str, str]:
    """Branches and tags of a repository, and the commit of each."""
    import huggingface_hub

    try:
        refs = huggingface_hub.HfApi().list_repo_refs(repository)
    except Exception as error:
        # Whatever the transport raises, the list cannot be had.
        raise InputError(
            f"The revisions of {repository!r} cannot be listed: {type(error).__name__}.",
            remedy="Check the id and the connection, or name a local folder of checkpoints.",
        ) from error
    return {ref.name: ref.target_commit for ref in (*refs.branches, *refs.tags)}
