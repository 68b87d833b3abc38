"""The checkpoints of a model in training: revisions of a hub repository, or subfolders of a local folder.

Only names and their order; resolving one of them is `loading`'s work.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparse_probing.config import ModelSpec
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
        names = _hub_revisions(spec.id)
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


def _hub_revisions(repository: str) -> list[str]:
    import huggingface_hub

    try:
        refs = huggingface_hub.HfApi().list_repo_refs(repository)
    except Exception as error:
        # Whatever the transport raises, the list cannot be had.
        raise InputError(
            f"The revisions of {repository!r} cannot be listed: {type(error).__name__}.",
            remedy="Check the id and the connection, or name a local folder of checkpoints.",
        ) from error
    return [ref.name for ref in (*refs.branches, *refs.tags)]
