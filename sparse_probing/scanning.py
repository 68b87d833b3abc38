"""Which checkpoints of a model in training are there, and which of them are studied: one look, without side effects.

Digests alone decide whether a checkpoint is studied. Who starts studies of the others is the caller's affair (`flows`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from sparse_probing import config
from sparse_probing.config import StudySpec
from sparse_probing.errors import InputError
from sparse_probing.mistakes import explain
from sparse_probing.models import checkpoints as sightings
from sparse_probing.models.checkpoints import Sighting
from sparse_probing.planning import StudyPlan, plan_study
from sparse_probing.settings import Settings, load_settings
from sparse_probing.store.filesystem import Location

COLUMNS = ("revision", "training_step", "complete", "studied", "reason")
# Between two looks at a checkpoint that is to be studied: whoever still writes to it shows by then.
SETTLE_SECONDS = 5.0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as a scan found it.

    Attributes
    ----------
    revision:
        Name of the subfolder, branch or tag.
    training_step:
        That the name gives; None if it gives none.
    complete:
        Whether all its files are there, as long as their headers say, and nobody writes to them.
    studied:
        Whether every run of its study is finished and published.
    reason:
        Why it is not complete, or how far its study is; empty if there is nothing to say.
    study:
        The study of this checkpoint alone; None where it is not complete.
    key:
        Digest of that study and of the checkpoint's fingerprint: the same question about the same files; empty without a study.
    """

    revision: str
    training_step: int | None
    complete: bool
    studied: bool
    reason: str = ""
    study: StudySpec | None = None
    key: str = ""

    @property
    def is_new(self) -> bool:
        """Whether it is there to be studied."""
        return self.complete and not self.studied


def scan(
    study: StudySpec,
    settings: Settings | None = None,
    root: Location | None = None,
    *,
    settle_seconds: float = SETTLE_SECONDS,
) -> list[Checkpoint]:
    """Look at every checkpoint of a study, by training step.

    Parameters
    ----------
    study:
        With a section `checkpoints`.
    settings, root:
        As those of `planning.plan_study`.
    settle_seconds:
        Complete checkpoints that are not studied are looked at once more after so many seconds, and do not count if a file
        changed meanwhile.

    Raises
    ------
    InputError
        If the study has no checkpoints, the folder is not there or the hub cannot be asked.
    """
    if study.checkpoints is None:
        raise InputError(
            f"Study {study.name} has no section [checkpoints].",
            remedy='Add it to the profile, with folder = "…" or hub = "owner/name".',
        )
    seen = sightings.look(study.checkpoints)
    found = _looked_up(study, [_checkpoint(study, one) for one in seen], settings or load_settings(), root)
    if settle_seconds > 0 and any(one.is_new for one in found):
        time.sleep(settle_seconds)
        again = {one.name: one.fingerprint for one in sightings.look(study.checkpoints)}
        still = {one.name for one in seen if again.get(one.name) == one.fingerprint}
        found = [
            one
            if not one.is_new or one.revision in still
            else replace(one, complete=False, reason="its files changed while they were looked at", study=None, key="")
            for one in found
        ]
    return found


def rows(found: Sequence[Checkpoint]) -> Iterator[dict[str, object]]:
    """A scan as rows of plain values, for tables and JSON."""
    for one in found:
        yield {name: getattr(one, name) for name in COLUMNS}


def in_order(study: StudySpec, found: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints to be studied, the first of them first."""
    new = [one for one in found if one.is_new]
    newest = study.checkpoints is not None and study.checkpoints.order == "newest"
    return new[::-1] if newest else new


def series_digest(study: StudySpec) -> str:
    """Digest of what all checkpoints of a study share: its questions, and where the checkpoints are."""
    where = study.checkpoints.id if study.checkpoints is not None else ""
    same = study.model_copy(update={"checkpoints": None, "description": ""})
    return config.digest(same, inputs={"checkpoints": where})


def _checkpoint(study: StudySpec, seen: Sighting) -> Checkpoint:
    if seen.incomplete:
        return Checkpoint(seen.name, seen.step, complete=False, studied=False, reason=seen.incomplete)
    try:
        of_checkpoint = study.of_checkpoint(seen.revision, seen.step)
    except ValidationError as error:
        return Checkpoint(seen.name, seen.step, complete=False, studied=False, reason=explain(error, StudySpec)[1])
    same = of_checkpoint.model_copy(update={"description": ""})
    key = config.digest(same, inputs={"checkpoint": seen.fingerprint})
    return Checkpoint(seen.name, seen.step, complete=True, studied=False, study=of_checkpoint, key=key)


def _looked_up(
    study: StudySpec, found: list[Checkpoint], settings: Settings, root: Location | None
) -> list[Checkpoint]:
    """The checkpoints with whether they are studied: one plan for all, which opens the published database once."""
    models = tuple(one.study.models[0] for one in found if one.study is not None)
    if not models:
        return found
    plan = plan_study(study.model_copy(update={"models": models, "checkpoints": None}), settings, root)
    return [one if one.study is None else _with_state(one, plan) for one in found]


def _with_state(one: Checkpoint, plan: StudyPlan) -> Checkpoint:
    if one.study is None:
        return one
    pairs = plan.of_model(one.study.models[0])
    runs = [run for pair in pairs for run in pair.runs]
    finished = [run for run in runs if run.is_finished]
    run_ids = {run_id for pair in pairs for run_id in pair.run_ids}
    if len(finished) == len(runs) and run_ids <= plan.published:
        return replace(one, studied=True)
    if not finished:
        begun = any(artifact.state != "missing" for pair in pairs for artifact in (pair.dataset, *pair.activations))
        return replace(one, reason="begun" if begun else "new")
    state = "finished" if len(finished) < len(runs) else "finished, not published"
    return replace(one, reason=f"{len(finished)} of {len(runs)} runs {state}")


def expanded(study: StudySpec) -> StudySpec:
    """A study with its checkpoints as its models: those that are complete now. One without checkpoints is returned as it is.

    Raises
    ------
    InputError
        If no checkpoint is complete, the folder is not there or the hub cannot be asked.
    """
    if study.checkpoints is None:
        return study
    found = [_checkpoint(study, one) for one in sightings.look(study.checkpoints)]
    models = tuple(one.study.models[0] for one in found if one.study is not None)
    if not models:
        why = f", the first of them ({found[0].revision}): {found[0].reason}" if found else ""
        raise InputError(
            f"{study.checkpoints.id} has no complete checkpoint ({len(found)} of its names match{why}).",
            remedy="Wait for one, or mend checkpoints.pattern.",
        )
    return study.model_copy(update={"models": models, "checkpoints": None})
