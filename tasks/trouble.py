"""What went wrong on a server of late: runs that failed or crashed, and checks that failed, as rows and as one text for people.

Nothing here decides on anything, and nothing is mended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter
from prefect.events.schemas.events import Event
from prefect.utilities.urls import url_for
from prefect.variables import Variable

from sparse_probing.credentials import without_secrets
from sparse_probing.errors import InputError
from tasks.logs import log
from tasks.policies import POLICY

# Key of the artifact.
TROUBLE = "trouble"
# Name of the notification block that an operator may make; its type decides where the text goes.
ALERTS = "sparse-probing-alerts"
# Variable with the keys of what the last message said.
TOLD = "sparse_probing_trouble_told"
CHECK_FAILED = "sparse-probing.check.failed"
# Entries of the text, and events that are asked for: the server answers with no more of them, and with at most 200 runs.
MOST = 50
_LONGEST = 300
_PAGE = 200


@dataclass(frozen=True)
class Trouble:
    """One thing that went wrong.

    Attributes
    ----------
    at:
        When it was known, with a time zone.
    what:
        ``run failed``, ``run crashed``, or ``check failed`` with its severity.
    subject:
        Name of the run, or of the check and the probing run that it was about.
    study:
        Name of the study; empty where a run failed before it knew.
    found:
        What was said, on one line and without credentials.
    look:
        The command that shows more.
    page:
        Address of the run's page; empty for a check.
    times:
        How often it happened; all else is of the last time.
    """

    at: datetime
    what: str
    subject: str
    study: str
    found: str
    look: str
    page: str = ""
    times: int = 1

    @property
    def key(self) -> str:
        """What makes it the same trouble again: a digest of all but when, where to look, and how often."""
        text = json.dumps([self.what, self.subject, self.study, self.found])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@task(name="recent-trouble", **POLICY)
def recent_trouble(pools: Sequence[str], *, hours: int, without: Sequence[str]) -> list[Trouble]:
    """What went wrong in the last hours, the newest first: at most `MOST` entries, each with how often it happened.

    Parameters
    ----------
    pools:
        Work pools whose runs count. Flows inside of a run are not listed beside it.
    without:
        Names of flows that do not count.
    """
    since = datetime.now(UTC) - timedelta(hours=hours)
    with get_client(sync_client=True) as client:
        runs = _failed_runs(client, pools, since, without)
        page = client.read_events(
            EventFilter(
                event=EventNameFilter(name=[CHECK_FAILED]), occurred=EventOccurredFilter(since=cast(Any, since))
            ),
            limit=MOST,
        )
    found = together([*map(_of_run, runs), *map(_of_check, page.events)])[:MOST]
    log("Trouble", hours=hours, entries=len(found))
    return found


def together(found: Iterable[Trouble]) -> list[Trouble]:
    """One entry for what happened several times, as of the last time; the newest first.

    A scan that fails does so at each turn of its schedule, and a check each time that its study is published.
    """
    groups: dict[str, list[Trouble]] = {}
    for one in sorted(found, key=lambda one: one.at, reverse=True):
        groups.setdefault(one.key, []).append(one)
    return [replace(same[0], times=len(same)) for same in groups.values()]


def _failed_runs(
    client: SyncPrefectClient, pools: Sequence[str], since: datetime, without: Sequence[str]
) -> list[FlowRun]:
    # Flows by name are left out after the fact: the server has no filter for "not this flow".
    others = client.read_flows(flow_filter=FlowFilter(name=FlowFilterName(any_=list(without))))
    skipped = {flow.id for flow in others}
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.FAILED, StateType.CRASHED])),
            end_time=FlowRunFilterEndTime(after_=cast(Any, since)),
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=list(pools))),
        sort=FlowRunSort.END_TIME_DESC,
        limit=_PAGE,
    )
    return [run for run in found if run.flow_id not in skipped]


def _of_run(run: FlowRun) -> Trouble:
    state = run.state
    crashed = state is not None and state.is_crashed()
    tags = dict(tag.split(": ", 1) for tag in run.tags if ": " in tag)
    at = state.timestamp if state is not None else (run.end_time or run.created)
    return Trouble(
        at=cast(datetime, at),
        what="run crashed" if crashed else "run failed",
        subject=run.name,
        study=tags.get("study", ""),
        found=_one_line((state.message if state is not None else None) or "it left no message"),
        look=f"prefect flow-run logs {run.id}",
        page=url_for("flow-run", run.id) or "",
    )


def _of_check(event: Event) -> Trouble:
    facts = event.payload
    name, run = str(facts.get("check")), str(facts.get("run"))
    where = f"name = '{name}' and run_id = '{run}'" if facts.get("run") else f"name = '{name}'"
    return Trouble(
        at=event.occurred,
        what=f"check failed ({facts.get('severity')})",
        subject=f"{name} of run {run}" if facts.get("run") else name,
        study=str(facts.get("study") or ""),
        found=_one_line(str(facts.get("found") or "")),
        look=f'sparse-probing sql "select * from validation_checks where {where}"',
    )


def _one_line(text: str) -> str:
    said = " ".join(without_secrets(text).split())
    # It is shown as code: nothing in it is taken for markup.
    return said.replace("`", "'")[:_LONGEST]


def title(found: Sequence[Trouble], *, hours: int) -> str:
    """One line: how many runs and checks."""
    checks = sum(one.times for one in found if one.what.startswith("check"))
    runs = sum(one.times for one in found) - checks
    if not found:
        return f"No run failed and no check failed in the last {hours} h"
    return f"In the last {hours} h: {_count(runs, 'run')} failed or crashed, {_count(checks, 'check')} failed"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def as_markdown(found: Sequence[Trouble], *, hours: int) -> str:
    """The text that people read, an entry a paragraph, the newest first."""
    lines = [f"# {title(found, hours=hours)}", ""]
    if len(found) >= MOST:
        lines += [f"These are the newest {MOST}; there may be more.", ""]
    for one in found:
        study = f", study `{_one_line(one.study)}`" if one.study else ""
        often = f", {one.times} times" if one.times > 1 else ""
        page = f" · [its page]({one.page})" if one.page else ""
        lines += [
            f"**{one.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC · {one.what}**: `{_one_line(one.subject)}`{study}{often}",
            "",
            f"- `{_one_line(one.found)}`",
            f"- `{one.look}`{page}",
            "",
        ]
    return "\n".join(lines)


@task(name="write-trouble", **POLICY)
def write_trouble(found: Sequence[Trouble], *, hours: int) -> str:
    """Leave the text as artifact `trouble` at Prefect's page; returns it."""
    text = as_markdown(found, hours=hours)
    create_markdown_artifact(key=TROUBLE, markdown=text, description=title(found, hours=hours))
    return text


@task(name="send-trouble", **POLICY)
def send_trouble(found: Sequence[Trouble], text: str, *, hours: int) -> bool:
    """Send the text through the notification block named `sparse-probing-alerts`; whether it was sent.

    It is not sent where there is no such block, nor where all of it was sent before: a scan that fails every half minute is no
    message every half minute.

    Raises
    ------
    InputError
        If the block of that name is none that notifies.
    """
    with get_client(sync_client=True) as client:
        kind = _type_of_block(client, ALERTS)
    if kind is None:
        log("Not sent", block=f"none is named {ALERTS}")
        return False
    keys = [one.key for one in found]
    # What is listed no more is forgotten: should it happen again, it is news again.
    if set(keys) <= set(cast("list[str]", Variable.get(TOLD, default=[]))):
        Variable.set(TOLD, cast(Any, keys), overwrite=True)
        log("Not sent", news="none since the last message")
        return False
    block = Block.load(f"{kind}/{ALERTS}")
    if not isinstance(block, NotificationBlock):
        raise InputError(
            f"The block {kind}/{ALERTS} sends no notifications.",
            remedy=f"Make one that does under this name, such as slack-webhook/{ALERTS}, and delete this one.",
        )
    cast(Any, block).notify(text, subject=title(found, hours=hours))
    Variable.set(TOLD, cast(Any, keys), overwrite=True)
    log("Sent", block=f"{kind}/{ALERTS}", entries=len(found))
    return True


def _type_of_block(client: SyncPrefectClient, name: str) -> str | None:
    """Slug of the type of the block of this name, of any type; None if there is none."""
    n_seen = 0
    while True:
        blocks = client.read_block_documents(offset=n_seen, limit=_PAGE, include_secrets=False)
        for block in blocks:
            if block.name == name and block.block_type is not None:
                return str(block.block_type.slug)
        n_seen += len(blocks)
        if len(blocks) < _PAGE:
            return None
