"""What ran on the server: each study's run with its state, its time, and the time of its stages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flows.server_api import Server
from sparse_probing.credentials import without_secrets

STAGES = ("datasets", "extract", "probe", "publish")
COLUMNS = ("run", "state", "started_at", "seconds", *(f"{stage}_seconds" for stage in STAGES), "parts", "message")


def study_runs(server: Server, *, limit: int) -> list[dict[str, Any]]:
    """The last runs of studies and of stages by themselves, the newest first: a row each under `COLUMNS`.

    Seconds of a stage are summed over models; ``parts`` counts runs that shared the work, started again ones too. Runs that
    have not begun are left out.
    """
    flows = {one["id"]: one["name"] for one in server.ask_all("flows/filter", {})}
    flow_ids = [key for key, name in flows.items() if name in ("study", *STAGES)]
    if not flow_ids:
        return []
    wanted = {
        "flows": {"id": {"any_": flow_ids}},
        "flow_runs": {"parent_task_run_id": {"is_null_": True}, "start_time": {"is_null_": False}},
        "sort": "START_TIME_DESC",
    }
    runs = server.ask_all("flow_runs/filter", wanted, most=limit)
    return [_row(run, _inside(server, run["id"]), flows) for run in runs]


def _inside(server: Server, run_id: str) -> list[dict[str, Any]]:
    """All runs that a run started, in this process or through a deployment."""
    found: list[dict[str, Any]] = []
    above = [run_id]
    while above:
        below = server.ask_all("flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": above}}})
        found += below
        above = [run["id"] for run in below]
    return found


def _row(run: dict[str, Any], inside: list[dict[str, Any]], flows: dict[str, str]) -> dict[str, Any]:
    state = run["state"] or {}
    seconds = {stage: _seconds([one for one in inside if flows.get(one["flow_id"]) == stage]) for stage in STAGES}
    own = flows.get(run["flow_id"])
    if own in STAGES:
        seconds[own] = _seconds([run])
    ended_well = state.get("type") in ("COMPLETED", "RUNNING", "PENDING")
    message = " ".join(without_secrets(state.get("message") or "").split())
    return {
        "run": run["name"],
        "state": state.get("name", ""),
        "started_at": datetime.fromisoformat(run["start_time"]).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": _seconds([run]),
        **{f"{stage}_seconds": seconds[stage] for stage in STAGES},
        "parts": sum(str(flows.get(one["flow_id"])).endswith("-part") for one in inside),
        "message": "" if ended_well else message[:200],
    }


def _seconds(runs: list[dict[str, Any]]) -> float | None:
    """Time at work of some runs in all; None where there are none. Of those that are at work still, until now."""
    return round(sum(float(run["estimated_run_time"]) for run in runs), 1) if runs else None
