"""The automation that has trouble reported: which events start a report, and how a burst of them starts one.

Nothing here imports Prefect. What a report says is in `tasks.trouble`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from flows.server_api import Server
from sparse_probing.errors import SparseProbingError

# Name of the flow and of its deployment.
REPORT = "report-trouble"
NAME = "sparse-probing: failed checks and runs are reported"
# The first event starts a report. It begins after those that came within this time, so that it has them all; they start none.
BURST_SECONDS = 60.0
# Until an event that just occurred can be read back from the server.
_SLACK_SECONDS = 10.0
_ENDED_BADLY = ("Failed", "Crashed", "TimedOut")
_DEFINITION = "definition: "


def definition(deployment_id: str, pools: Sequence[str], burst_seconds: float = BURST_SECONDS) -> dict[str, Any]:
    """The automation, as the server takes it.

    Two triggers, either of which starts the report: a check that failed, and a run in one of our pools that did. Runs of the
    report itself are left out, or one that fails would start the next.
    """
    within = {"type": "event", "posture": "Reactive", "threshold": 1, "within": burst_seconds}
    made: dict[str, Any] = {
        "name": NAME,
        "enabled": True,
        "description": "Lists them as artifact `trouble`, and sends the list through the notification block "
        "`sparse-probing-alerts` where there is one.",
        "trigger": {
            "type": "compound",
            "require": "any",
            "within": None,
            "triggers": [
                {
                    **within,
                    "match": {"prefect.resource.id": "sparse-probing.check.*"},
                    "expect": ["sparse-probing.check.failed"],
                },
                {
                    **within,
                    "match": {"prefect.resource.id": "prefect.flow-run.*"},
                    "match_related": [
                        {"prefect.resource.role": "work-pool", "prefect.resource.name": sorted(pools)},
                        {"prefect.resource.role": "flow", "prefect.resource.name": f"!{REPORT}"},
                    ],
                    "expect": [f"prefect.flow-run.{state}" for state in _ENDED_BADLY],
                },
            ],
        },
        "actions": [
            {
                "type": "run-deployment",
                "source": "selected",
                "deployment_id": deployment_id,
                "parameters": {},
                "schedule_after": burst_seconds + _SLACK_SECONDS,
            }
        ],
    }
    canonical = json.dumps(made, sort_keys=True).encode()
    return made | {"tags": [_DEFINITION + hashlib.sha256(canonical).hexdigest()[:16]]}


def make_reporting(server: Server, pools: Sequence[str]) -> None:
    """Make the automation, or bring one that an older version made up to date; whether it is turned on stays its owner's choice.

    One of this definition that is there stays as it is, whatever its owner changed. Raises `SparseProbingError` if the
    deployment that it runs is not there.
    """
    found = server.find(f"deployments/name/{REPORT}/{REPORT}")
    if found is None:
        raise SparseProbingError(
            f"The server has no deployment {REPORT}/{REPORT}.", remedy="See that prefect.yaml has it, and deploy again."
        )
    wanted = definition(found["id"], pools)
    known = server.ask("automations/filter", {"automations": {"name": {"any_": [NAME]}}})
    if not known:
        server.ask("automations/", wanted)
        return
    kept, *doubles = sorted(known, key=lambda one: str(one["created"]))
    # Two deployments at once may each have made one.
    for one in doubles:
        server.ask(f"automations/{one['id']}", method="DELETE")
    if kept.get("tags") != wanted["tags"]:
        server.ask(f"automations/{kept['id']}", wanted | {"enabled": kept["enabled"]}, method="PUT")
