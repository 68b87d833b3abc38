"""Which events start a report of trouble, seen with the server's own triggers, and what a report says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.server.events.schemas.automations import Automation, AutomationCreate, CompoundTrigger, EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent

from flows.automations import BURST_SECONDS, REPORT, definition
from flows.pool import CPU_POOL, POOL, POOLS
from tasks.trouble import MOST, Trouble, as_markdown, title, together

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
FAILED = Trouble(
    at=NOON,
    what="run failed",
    subject="probe layers, part 0 of 2",
    study="tiny",
    found="InputError: no such file",
    look="prefect flow-run logs 1",
    page="http://127.0.0.1:4200/runs/flow-run/1",
)


def event(name: str, flow: str, pool: str | None) -> ReceivedEvent:
    """An event about a flow's run, with related resources as the server puts them."""
    related = [
        {
            "prefect.resource.id": f"prefect.flow.{uuid4()}",
            "prefect.resource.role": "flow",
            "prefect.resource.name": flow,
        }
    ]
    if pool is not None:
        found = {"prefect.resource.role": "work-pool", "prefect.resource.name": pool}
        related.append({"prefect.resource.id": f"prefect.work-pool.{uuid4()}", **found})
    resource = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}"}
    return ReceivedEvent(id=uuid4(), occurred=NOON, event=name, resource=resource, related=related, payload={})


def triggers() -> list[EventTrigger]:
    """Those of the automation, as a server makes them of what it is sent."""
    made = AutomationCreate(**definition(str(uuid4()), list(POOLS)))
    whole = Automation(id=uuid4(), **made.model_dump(exclude={"owner_resource"}))
    assert isinstance(whole.trigger, CompoundTrigger)
    assert whole.trigger.num_expected_firings == 1
    return [one for one in whole.trigger.triggers if isinstance(one, EventTrigger)]


@pytest.mark.parametrize(
    ("name", "flow", "pool", "starts_one"),
    [
        ("prefect.flow-run.Failed", "study", POOL, True),
        ("prefect.flow-run.Crashed", "probe-part", CPU_POOL, True),
        ("prefect.flow-run.TimedOut", "scan-checkpoints", POOL, True),
        ("prefect.flow-run.Completed", "study", POOL, False),
        ("prefect.flow-run.Failed", "study", "a pool of others", False),
        # A flow inside of a run, or of the command line, has no pool.
        ("prefect.flow-run.Failed", "extract", None, False),
        # It would start the next.
        ("prefect.flow-run.Failed", REPORT, POOL, False),
        ("prefect.flow-run.Crashed", REPORT, POOL, False),
    ],
)
def test_what_starts_a_report(name: str, flow: str, pool: str | None, starts_one: bool) -> None:
    assert any(trigger.covers(event(name, flow, pool)) for trigger in triggers()) is starts_one


def test_a_failed_check_starts_a_report_and_other_events_do_not() -> None:
    def told(name: str, subject: str) -> ReceivedEvent:
        resource = {"prefect.resource.id": f"sparse-probing.{subject}"}
        return ReceivedEvent(id=uuid4(), occurred=NOON, event=f"sparse-probing.{name}", resource=resource, payload={})

    covered = [told("check.failed", "check.check_orphan_rows")]
    others = [told("study.published", "study.tiny"), told("checkpoint.found", "checkpoint.step10")]
    for one, expected in [(one, True) for one in covered] + [(one, False) for one in others]:
        assert any(trigger.covers(one) for trigger in triggers()) is expected


def test_a_report_begins_after_the_failures_that_start_none() -> None:
    made = definition(str(uuid4()), list(POOLS))
    (action,) = made["actions"]
    assert all(trigger.within == timedelta(seconds=BURST_SECONDS) for trigger in triggers())
    assert action["schedule_after"] > BURST_SECONDS


def test_another_definition_has_another_tag() -> None:
    deployment = str(uuid4())
    assert definition(deployment, ["a", "b"]) == definition(deployment, ["b", "a"])
    assert definition(deployment, ["a"])["tags"] != definition(deployment, ["b"])["tags"]
    assert definition(deployment, ["a"])["tags"] != definition(str(uuid4()), ["a"])["tags"]


def test_the_newest_is_first_and_what_happens_again_is_counted() -> None:
    minute = timedelta(minutes=1)
    again = [replace(FAILED, at=NOON + minute * i, look=f"prefect flow-run logs {i}") for i in range(3)]
    check = replace(FAILED, at=NOON - minute, what="check failed (error)", subject="check_x of run 5", page="")
    found = together([again[1], check, again[2], again[0]])
    assert [(one.subject, one.times) for one in found] == [(FAILED.subject, 3), (check.subject, 1)]
    text = as_markdown(found, hours=24)
    assert title(found, hours=24) == "In the last 24 h: 3 runs failed or crashed, 1 check failed"
    assert "2026-05-01 12:02:00 UTC · run failed**: `probe layers, part 0 of 2`, study `tiny`, 3 times" in text
    assert "prefect flow-run logs 2" in text
    assert text.index("run failed") < text.index("check failed (error)")
    assert "may be more" not in text
    many = together(replace(FAILED, subject=str(i)) for i in range(MOST))
    assert f"the newest {MOST}" in as_markdown(many, hours=24)


def test_nothing_in_a_message_is_taken_for_markup() -> None:
    hostile = replace(FAILED, subject="a`b", found="`]( <img src=x> \n# title")
    lines = as_markdown([hostile], hours=1).splitlines()
    assert "- `'](" in lines[4]
    assert lines[4] == "- `']( <img src=x> # title`"
    assert "`a'b`" in lines[2]


def test_nothing_failed() -> None:
    assert as_markdown([], hours=24).strip() == "# No run failed and no check failed in the last 24 h"
