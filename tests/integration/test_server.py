"""A real server, pool, worker and deployment run the study to its end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import free_port

ROOT = Path(__file__).parents[2]


def read(url: str, body: dict | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


@pytest.mark.slow
def test_up_deploy_run_down(tmp_path: Path, cli, tiny_profile: Path, prefect_environment: dict[str, str]) -> None:
    data = tmp_path / "data"
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    try:
        started = cli("up", "--port", str(port), data=data)
        assert started.returncode == 0, started.stdout + started.stderr
        deployments = read(f"{api}/deployments/filter", {})
        assert {deployment["name"] for deployment in deployments} == {"study", "study-nightly"}
        nightly = next(deployment for deployment in deployments if deployment["name"] == "study-nightly")
        assert nightly["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
        assert not nightly["schedules"][0]["active"]
        environment = prefect_environment | {"PREFECT_API_URL": api}
        asked = subprocess.run(
            [sys.executable, "-m", "prefect", "deployment", "run", "study/study", "--param", f"profile={tiny_profile}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert asked.returncode == 0, asked.stderr
        state = ""
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            runs = read(f"{api}/flow_runs/filter", {"flows": {"name": {"any_": ["study"]}}})
            # Studies of other tests may have left runs in the same database.
            ran = [run for run in runs if run["deployment_id"]]
            state = ran[0]["state"]["type"] if ran else ""
            if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                break
            time.sleep(1)
        assert state == "COMPLETED", (data / "logs" / "worker.log").read_text()[-3000:]
        keys = {artifact["key"] for artifact in read(f"{api}/artifacts/filter", {})}
        assert {"best-neurons", "study-summary", "validation-checks"} <= keys
        assert any(key.startswith("extract-") for key in keys if key)
        summary = read(f"{api}/artifacts/filter", {"artifacts": {"key": {"any_": ["study-summary"]}}})[0]["data"]
        assert re.search(r"\| layer \d, neuron \d+ \|", summary)
        # A schedule that someone turned on stays on when the services are started once more.
        schedule = f"{api}/deployments/{nightly['id']}/schedules/{nightly['schedules'][0]['id']}"
        read(schedule, {"active": True}, method="PATCH")
        twice = cli("up", "--port", str(port), data=data)
        assert twice.returncode == 0, twice.stderr
        after = {one["name"]: one["schedules"] for one in read(f"{api}/deployments/filter", {})}
        assert [one["active"] for one in after["study-nightly"]] == [True]
        # The command line finds the server by itself, and finds all work done.
        again = cli("study", "--profile", str(tiny_profile), data=data, server=False)
        assert again.returncode == 0, again.stderr
        assert f"127.0.0.1:{port}" in again.stdout
    finally:
        stopped = cli("down", data=data)
    assert stopped.stdout.count("stopped") == 2
