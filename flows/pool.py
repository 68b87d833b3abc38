"""What a server needs to have for studies to run on it: work pools, deployments, an eye on lost runs.

Studies, stages and scans run in one pool, parts that need a device in another, parts that need none in a third: a run that
waits for parts takes no worker's slot from them. The pools let a run override next to nothing: a run that may set the command
or environment of its process can do whatever the worker's user can.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.automations import make_reporting
from flows.server_api import Server
from sparse_probing.config import StudySpec, find_profile, load_profile
from sparse_probing.errors import InputError, SparseProbingError

POOL = "sparse-probing"
GPU_POOL = "sparse-probing-gpu"
CPU_POOL = "sparse-probing-cpu"
POOLS = {
    POOL: "studies, their stages, and scans for checkpoints",
    GPU_POOL: "parts of extractions, one at a time on each machine",
    CPU_POOL: "parts of probing",
}
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
# A worker that dies after it took a run, and before that begins, leaves it pending: no sign of life is missed.
UNBEGUN_AUTOMATION = "sparse-probing: a run that was taken and never began has crashed"
TAKEN = "prefect.flow-run.Pending"
BEGUN = ("Running", "Scheduled", "AwaitingConcurrencySlot", "AwaitingRetry", "Cancelling")
PLACEHOLDER = re.compile(r"\{\{\s*([\w.-]+)\s*\}\}")


def need_checkout() -> None:
    """Raise `InputError` unless the deployments' file is where it is expected."""
    if not (PROJECT / "prefect.yaml").is_file():
        raise InputError("prefect.yaml was not found.", remedy="Run this from a checkout of the project.")


def deploy_all(server: Server, environment: dict[str, str]) -> None:
    """Make pools, automations and deployments, or mend them.

    A pool's settings, and schedules turned on, stay as they are; what a run may override does not.
    """
    for pool, what in POOLS.items():
        make_pool(server, pool)
        say(f"Pool      {pool}: {what}")
    make_automations(server)
    say(
        f"Crashes   a run without a sign of life for {SILENT_SECONDS / 60:.0f} min, or that did not begin, is marked as crashed"
    )
    turned_on = _active_schedules(server)
    run_prefect("--no-prompt", "deploy", "--all", environment=environment)
    make_reporting(server, list(POOLS))
    say("Trouble   failed checks and runs are listed as artifact `trouble` at Prefect's page")
    off = []
    deployments = server.ask_all("deployments/filter", {})
    for deployment in deployments:
        for schedule in deployment["schedules"]:
            if (deployment["name"], str(schedule["schedule"])) in turned_on:
                path = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
                server.ask(path, {"active": True}, method="PATCH")
            elif not schedule["active"]:
                off.append(deployment["name"])
    ours = sorted(one["name"] for one in deployments if one["work_pool_name"] in POOLS)
    say(f"Deployed  {', '.join(ours)}")
    if off:
        say(f"Schedule  of {', '.join(off)} is off; turn it on in the browser, on the deployment's page")


def watchable(profile: str) -> tuple[Path, StudySpec]:
    """The file of a profile with checkpoints, and what it says.

    Raises
    ------
    InputError
        If it cannot be read, or has no checkpoints.
    """
    study = load_profile(profile)
    if study.checkpoints is None:
        raise InputError(
            f"Profile {profile} has no section [checkpoints].",
            remedy='Add it, with folder = "…" or hub = "owner/name".',
        )
    return find_profile(profile).absolute(), study


def watch_checkpoints(server: Server, profile: Path, study: StudySpec, *, seconds: int = 30) -> None:
    """Make a deployment of the scan for a profile, with its schedule turned on; one that there is gets the new interval."""
    base = server.find("deployments/name/scan-checkpoints/scan-checkpoints")
    if base is None:
        raise InputError("The server has no deployment scan-checkpoints.", remedy="Run: sparse-probing deploy")
    copied = ("flow_id", "work_pool_name", "work_queue_name", "entrypoint", "path", "pull_steps", "version")
    name = f"scan {study.name}"
    server.ask(
        "deployments/",
        {key: base[key] for key in copied}
        | {
            "name": name,
            "description": f"Studies new checkpoints of {study.checkpoints.id if study.checkpoints else ''}.",
            "parameters": {"profile": str(profile)},
            "parameter_openapi_schema": base["parameter_openapi_schema"],
            "enforce_parameter_schema": True,
            "schedules": [{"schedule": {"interval": float(seconds)}, "active": True}],
            # A scan that finds the last one at work is left out.
            "concurrency_limit": 1,
            "concurrency_options": {"collision_strategy": "CANCEL_NEW"},
        },
    )
    say(f"Watching  {study.checkpoints.id if study.checkpoints else ''}, every {seconds} s (deployment {name!r})")


def make_pool(server: Server, pool: str = POOL) -> None:
    """Make a work pool; of one that there is, change what a run may override and nothing else."""
    found = server.find(f"work_pools/{pool}")
    if found is None:
        server.ask("work_pools/", {"name": pool, "type": POOL_TYPE, "base_job_template": TEMPLATE})
        return
    if found["type"] != POOL_TYPE:
        say(f"Pool      {pool} is of type {found['type']}: what a run may override there is left as it is")
        return
    closed = closed_template(found["base_job_template"])
    if closed != found["base_job_template"]:
        server.ask(f"work_pools/{pool}", {"base_job_template": closed}, method="PATCH")
        say(f"Pool      {pool}: runs can no longer override anything but {', '.join(HARMLESS)}")


def make_automations(server: Server) -> None:
    """Have runs whose process is gone marked as crashed; automations of these names that are there stay as they are."""
    for wanted in (automation(SILENT_SECONDS), unbegun_automation(SILENT_SECONDS)):
        if not server.ask("automations/filter", {"automations": {"name": {"any_": [wanted["name"]]}}}):
            server.ask("automations/", wanted)


def automation(silent_seconds: float) -> dict[str, Any]:
    """The automation that marks a run as crashed when it gave no sign of life for so many seconds."""
    return _crashed_unless(
        AUTOMATION,
        after=[HEARTBEAT],
        expected=[HEARTBEAT, *(f"prefect.flow-run.{state}" for state in ENDED)],
        seconds=silent_seconds,
        description="A run whose machine, worker or process is gone would stay Running for ever.",
        message="No sign of life: the process that ran this is gone, or cannot reach the server.",
    )


def unbegun_automation(seconds: float) -> dict[str, Any]:
    """The automation that marks a run as crashed when a worker took it and it did not begin within so many seconds."""
    return _crashed_unless(
        UNBEGUN_AUTOMATION,
        after=[TAKEN],
        expected=[HEARTBEAT, *(f"prefect.flow-run.{state}" for state in (*BEGUN, *ENDED))],
        seconds=seconds,
        description="A run whose worker died before it began would stay Pending for ever.",
        message="It never began: the worker that took this is gone, or cannot start it.",
    )


def _crashed_unless(
    name: str, *, after: list[str], expected: list[str], seconds: float, description: str, message: str
) -> dict[str, Any]:
    return {
        "name": name,
        "enabled": True,
        "description": description,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "for_each": ["prefect.resource.id"],
            "after": after,
            "expect": expected,
            "threshold": 1,
            "within": seconds,
        },
        "actions": [{"type": "change-flow-run-state", "state": "CRASHED", "message": message}],
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
        for deployment in server.ask_all("deployments/filter", {})
        for schedule in deployment["schedules"]
        if schedule["active"]
    }


def say(text: str) -> None:
    """A line for the user of the command."""
    # Flushed, also into a pipe: the user sees that something happens.
    print(text, flush=True)
