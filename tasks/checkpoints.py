"""Tasks that look for checkpoints and start a study of each that is new, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from sparse_probing import scanning
from sparse_probing.config import StudySpec, short
from sparse_probing.errors import InputError
from sparse_probing.scanning import Checkpoint
from sparse_probing.settings import load_settings
from tasks.events import tell
from tasks.locations import data_root
from tasks.logs import log
from tasks.policies import POLICY
from tasks.progress import STUDY_TAG, artifact_key

DEPLOYMENT = "study/study-checkpoint"
# A checkpoint whose study failed or crashed so often is left alone until its files or its study change.
MOST_ATTEMPTS = 3
_CHECKPOINT = "checkpoint: "


@dataclass(frozen=True)
class Attempts:
    """The runs that there were of one checkpoint's study.

    Attributes
    ----------
    n_ended:
        Runs that ended, however they did.
    at_work:
        Whether one has not ended.
    n_failed, last_failure:
        Runs that failed or crashed, and what the last of them said.
    """

    n_ended: int
    at_work: bool
    n_failed: int
    last_failure: str


def expanded(study: StudySpec) -> StudySpec:
    """`scanning.expanded`."""
    return scanning.expanded(study)


@task(name="scan", **POLICY)
def scan(study: StudySpec) -> list[Checkpoint]:
    """Look at every checkpoint of a study; tells of those that are new or incomplete."""
    found = scanning.scan(study, load_settings(), data_root())
    for one in found:
        facts = dict(next(scanning.rows([one]))) | {"study": study.name}
        if one.is_new:
            tell("checkpoint.found", f"checkpoint.{one.revision}", facts, once=one.key)
        elif not one.complete:
            tell("checkpoint.incomplete", f"checkpoint.{one.revision}", facts, once=one.reason)
    log(
        "Checkpoints",
        found=len(found),
        complete=sum(one.complete for one in found),
        studied=sum(one.studied for one in found),
    )
    return found


@task(name="known-attempts", **POLICY)
def known_attempts(study: StudySpec) -> dict[str, Attempts]:
    """The runs that there were of each checkpoint's study, by the checkpoint's tag.

    Ask before you scan: a study that ends in between was at work then, and is not taken for one that left nothing behind.
    """
    by_checkpoint: dict[str, list[FlowRun]] = {}
    with get_client(sync_client=True) as client:
        for run in _runs(client, [_series_tag(study)]):
            for tag in run.tags:
                if tag.startswith(_CHECKPOINT):
                    by_checkpoint.setdefault(tag, []).append(run)
    return {tag: _attempts(runs) for tag, runs in by_checkpoint.items()}


@task(name="start-studies", **POLICY)
def start_studies(
    study: StudySpec, found: Sequence[Checkpoint], known: Mapping[str, Attempts]
) -> list[dict[str, object]]:
    """Start a study of each new checkpoint that none is at work on, as many as `at_once` allows; returns a row for each.

    One that failed or crashed is started again, `MOST_ATTEMPTS` times in all. The same scan made twice, at once or one after
    the other, starts no study twice: the server knows each attempt by its key.

    Parameters
    ----------
    found:
        What a scan found, after `known` was asked for.
    """
    most = study.checkpoints.at_once if study.checkpoints is not None else 1
    at_work = sum(attempts.at_work for attempts in known.values())
    said: dict[str, str] = {}
    for one in scanning.in_order(study, found):
        tag = f"{_CHECKPOINT}{short(one.key)}"
        attempts = known.get(tag, Attempts(0, False, 0, ""))
        if attempts.at_work:
            said[one.revision] = "its study is at work"
        elif attempts.n_failed >= MOST_ATTEMPTS:
            said[one.revision] = f"failed {attempts.n_failed} times, and is left alone: {attempts.last_failure}"
        elif at_work >= most:
            said[one.revision] = f"waits: {at_work} at work, checkpoints.at_once is {most}"
        else:
            _start(study, one, attempts.n_ended, [_series_tag(study), tag])
            at_work += 1
            attempt = f" (attempt {attempts.n_failed + 1} of {MOST_ATTEMPTS})" if attempts.n_failed else ""
            said[one.revision] = f"its study was started{attempt}"
            log("Study started", checkpoint=one.revision, attempt=attempts.n_failed + 1)
    told = [replace(one, reason=said.get(one.revision, one.reason)) for one in found]
    rows = list(scanning.rows(told))
    create_table_artifact(
        key=artifact_key("checkpoints", study.name),
        table=rows,
        description=f"Checkpoints of study {study.name}, as of the last scan",
    )
    return rows


def _series_tag(study: StudySpec) -> str:
    return f"series: {short(scanning.series_digest(study))}"


def _start(study: StudySpec, one: Checkpoint, attempt: int, tags: list[str]) -> None:
    if one.study is None:
        return
    model = one.study.models[0]
    try:
        run_deployment(
            DEPLOYMENT,
            # The study itself; a profile is a name of the package or a file, and this is neither.
            parameters={"spec": one.study.model_dump(mode="json")},
            timeout=0,
            as_subflow=False,
            flow_run_name=f"study {study.name}: {model.short_name} at {one.revision}",
            tags=[*tags, f"{STUDY_TAG}{study.name}", f"model: {model.short_name}", f"revision: {one.revision}"],
            idempotency_key=f"{one.key}/{attempt}",
        )
    except ObjectNotFound as error:
        raise InputError(
            f"The server has no deployment {DEPLOYMENT}, which a scan starts studies with.",
            remedy="Run: sparse-probing deploy",
        ) from error


def _runs(client: SyncPrefectClient, tags: list[str]) -> list[FlowRun]:
    """Flow runs that carry all the tags, the last first."""
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=tags)),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=200,
            offset=len(found),
        )
        found += cast("list[Any]", page)
        if len(page) < 200:
            return found


def _attempts(runs: Sequence[FlowRun]) -> Attempts:
    ended = [run for run in runs if _has_ended(run)]
    failed = [run for run in ended if run.state is not None and (run.state.is_failed() or run.state.is_crashed())]
    last = (failed[0].state.message if failed and failed[0].state else None) or "it left no message"
    return Attempts(len(ended), len(ended) < len(runs), len(failed), " ".join(last.split())[:300])


def _has_ended(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()
