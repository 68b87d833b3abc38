"""What a server needs to have for studies to run on it: work pool, deployments, an eye on lost runs.

The pool lets a run override next to nothing: a run that may set the command or environment of its process can do whatever
the worker's user can.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.server_api import Server
from sparse_probing.errors import InputError, SparseProbingError

POOL = "sparse-probing"
POOL_TYPE = "process"
PROJECT = Path(__file__).resolve().parents[1]
# What a run may set: words about its process, and whether the worker shows what it prints.
HARMLESS = ("name", "labels", "stream_output")
TEMPLATE: dict[str, Any] = {
    "job_configuration": {name: f"{{{{ {name} }}}}" for name in HARMLESS},
    "variables": {
        "type": "object",
        "properties": {
            "name": {
                "title": "Name",
                "description": "Name given to infrastructure created by a worker.",
                "anyOf": [{"type": "string"}, {"type": "null"}],
                "default": None,
            },
            "labels": {
                "title": "Labels",
                "description": "Labels applied to infrastructure created by a worker.",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "stream_output": {
                "title": "Stream Output",
                "description": "If enabled, workers will stream output from flow run processes to local standard output.",
                "type": "boolean",
                "default": True,
            },
        },
        # Without this the server takes unknown variables, and a worker merges `env` into that of the template.
        "additionalProperties": False,
    },
}
# Prefect marks no run whose process is gone: this does, by the signs of life that every flow run sends.
AUTOMATION = "sparse-probing: a run without a sign of life has crashed"
HEARTBEAT = "prefect.flow-run.heartbeat"
# Three of Prefect's default 180 s, and more than a server may be away.
SILENT_SECONDS = 600.0
# After these no sign of life is due.
ENDED = ("Completed", "Failed", "TimedOut", "Cancelled", "Crashed", "Paused", "Suspended")
PLACEHOLDER = re.compile(r"\{\{\s*([\w.-]+)\s*\}\}")


def need_checkout() -> None:
    """Raise `InputError` unless the deployments' file is where it is expected."""
    if not (PROJECT / "prefect.yaml").is_file():
        raise InputError("prefect.yaml was not found.", remedy="Run this from a checkout of the project.")


def deploy_all(server: Server, environment: dict[str, str]) -> None:
    """Make pool, automation and deployments, or mend them.

    A pool's settings, and schedules turned on, stay as they are; what a run may override does not.
    """
    make_pool(server)
    say(f"Pool      {POOL}: one extraction at a time on each machine")
    make_automation(server)
    say(f"Crashes   a run without a sign of life for {SILENT_SECONDS / 60:.0f} min is marked as crashed")
    turned_on = _active_schedules(server)
    run_prefect("--no-prompt", "deploy", "--all", environment=environment)
    off = []
    for deployment in server.ask("deployments/filter", {}):
        for schedule in deployment["schedules"]:
            if (deployment["name"], str(schedule["schedule"])) in turned_on:
                path = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
                server.ask(path, {"active": True}, method="PATCH")
            elif not schedule["active"]:
                off.append(deployment["name"])
    say("Deployed  study/study and study/study-nightly")
    if off:
        say(f"Schedule  of {', '.join(off)} is off; turn it on in the browser, on the deployment's page")


def make_pool(server: Server) -> None:
    """Make the work pool; of one that there is, change what a run may override and nothing else."""
    found = server.find(f"work_pools/{POOL}")
    if found is None:
        server.ask("work_pools/", {"name": POOL, "type": POOL_TYPE, "base_job_template": TEMPLATE})
        return
    if found["type"] != POOL_TYPE:
        say(f"Pool      {POOL} is of type {found['type']}: what a run may override there is left as it is")
        return
    closed = closed_template(found["base_job_template"])
    if closed != found["base_job_template"]:
        server.ask(f"work_pools/{POOL}", {"base_job_template": closed}, method="PATCH")
        say(f"Pool      {POOL}: runs can no longer override anything but {', '.join(HARMLESS)}")


def make_automation(server: Server) -> None:
    """Have runs whose process is gone marked as crashed; an automation of this name that is there stays as it is."""
    if server.ask("automations/filter", {"automations": {"name": {"any_": [AUTOMATION]}}}):
        return
    server.ask("automations/", automation(SILENT_SECONDS))


def automation(silent_seconds: float) -> dict[str, Any]:
    """The automation that marks a run as crashed when it gave no sign of life for so many seconds."""
    return {
        "name": AUTOMATION,
        "enabled": True,
        "description": "A run whose machine, worker or process is gone would stay Running for ever.",
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "for_each": ["prefect.resource.id"],
            "after": [HEARTBEAT],
            "expect": [HEARTBEAT, *(f"prefect.flow-run.{state}" for state in ENDED)],
            "threshold": 1,
            "within": silent_seconds,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": "No sign of life: the process that ran this is gone, or cannot reach the server.",
            }
        ],
    }


def closed_template(template: dict[str, Any]) -> dict[str, Any]:
    """A pool's template in which a run can set nothing but what is harmless.

    A value that the pool's owner wrote stays, and so does a default that the owner gave to a variable: it holds for all
    runs. A variable without a default goes, with the entry that asks for it.
    """
    if not template.get("job_configuration"):
        return copy.deepcopy(TEMPLATE)
    variables = template.get("variables") or {}
    properties = variables.get("properties") or {}
    configuration = {}
    for key, value in template["job_configuration"].items():
        fixed = _fixed(value, properties)
        if fixed is not None and fixed != {}:
            configuration[key] = fixed
    kept = {name: about for name, about in properties.items() if name in HARMLESS}
    closed = {
        **variables,
        "type": "object",
        "properties": kept,
        "additionalProperties": False,
    }
    if "required" in closed:
        closed["required"] = [name for name in closed["required"] if name in kept]
    return {**template, "job_configuration": configuration, "variables": closed}


def _fixed(value: Any, properties: dict[str, Any]) -> Any:
    """A part of a job's configuration with each variable in place of which a run could put something replaced."""
    if isinstance(value, dict):
        parts = {key: _fixed(part, properties) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not None}
    if isinstance(value, list):
        return [part for part in (_fixed(part, properties) for part in value) if part is not None]
    if not isinstance(value, str):
        return value
    # Names with a dot are Prefect's own: variables and blocks of the server, or the run's context.
    names = [name for name in PLACEHOLDER.findall(value) if name not in HARMLESS and "." not in name]
    if not names:
        return value
    defaults = {name: properties.get(name, {}).get("default") for name in names}
    whole = PLACEHOLDER.fullmatch(value.strip())
    if whole:
        return defaults[whole[1]]
    if None in defaults.values():
        return None
    return PLACEHOLDER.sub(lambda match: str(defaults.get(match[1], match[0])), value)


def run_prefect(*arguments: str, environment: dict[str, str]) -> None:
    """Run a command of Prefect's own; raises `SparseProbingError` with its last line if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines() or [""]
        raise SparseProbingError(
            f"prefect {' '.join(arguments)} failed: {lines[-1]}.", remedy="Run it by hand to see more."
        )


def child_environment(server: Server) -> dict[str, str]:
    """This process's environment, for one that shall talk to that server."""
    return os.environ | server.environment()


def _active_schedules(server: Server) -> set[tuple[str, str]]:
    return {
        (deployment["name"], str(schedule["schedule"]))
        for deployment in server.ask("deployments/filter", {})
        for schedule in deployment["schedules"]
        if schedule["active"]
    }


def say(text: str) -> None:
    """A line for the user of the command."""
    # Flushed, also into a pipe: the user sees that something happens.
    print(text, flush=True)
