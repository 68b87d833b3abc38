"""The files of deploy/: pools' templates as a server and a worker read them, no secret in any file, scripts that parse."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.utilities.schema_tools import ValidationError, validate

from flows.pool import HARMLESS
from tests.flows.test_pool import HOSTILE

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRET = re.compile(r"PASSWORD|SECRET|KEY|TOKEN|AUTH")


def template(kind: str) -> dict[str, Any]:
    return dict(json.loads((DEPLOY / f"kubernetes-{kind}.json").read_text(encoding="utf-8")))


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(manifest["spec"]["template"]["spec"])


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_server_takes_the_template_and_lets_a_run_set_nothing_but_words(kind: str) -> None:
    found = template(kind)
    # As the server checks a new pool: each placeholder is a variable.
    WorkPoolCreate(name="sparse-probing-gpu", type="kubernetes", base_job_template=found)
    assert set(found["variables"]["properties"]) == set(HARMLESS)
    validate({name: HOSTILE[name] for name in HARMLESS}, found["variables"], raise_on_error=True)
    for name, value in {**HOSTILE, "image": "mine", "namespace": "kube-system", "job_manifest": {}}.items():
        if name not in HARMLESS:
            with pytest.raises(ValidationError):
                validate({name: value}, found["variables"], raise_on_error=True)


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_secrets_come_from_kubernetes(kind: str) -> None:
    (container,) = pod(template(kind)["job_configuration"]["job_manifest"])["containers"]
    secret = {entry["name"] for entry in container["env"] if SECRET.search(entry["name"])}
    assert secret == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    for entry in container["env"]:
        assert ("secretKeyRef" in entry.get("valueFrom", {})) == (entry["name"] in secret), entry["name"]
    assert {"SPARSE_PROBING_DATA", "SPARSE_PROBING_DEVICE"} <= {entry["name"] for entry in container["env"]}


def test_the_two_pools_differ_in_the_device_alone() -> None:
    gpu, cpu = (template(kind)["job_configuration"]["job_manifest"] for kind in ("gpu", "cpu"))
    assert pod(gpu)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in json.dumps(cpu)
    for manifest in (gpu, cpu):
        manifest["metadata"].pop("generateName")
        spec = manifest["spec"]["template"]["spec"]
        spec.pop("tolerations", None)
        spec["containers"][0].pop("resources")
        spec["containers"][0]["env"] = [
            one for one in spec["containers"][0]["env"] if one["name"] != "SPARSE_PROBING_DEVICE"
        ]
    assert gpu == cpu


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_worker_makes_the_job_that_the_template_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the worker's own code: whatever a run brings, image, command and environment are those of the pool."""
    worker = pytest.importorskip("prefect_kubernetes.worker")
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example.org/api")
    hostile = {**HOSTILE, "image": "mine", "namespace": "kube-system", "job_manifest": {"spec": {}}}
    found = asyncio.run(worker.KubernetesWorkerJobConfiguration.from_template_and_values(template(kind), hostile))
    run = FlowRun(flow_id="6f1d4c55-6b6c-4b7e-9a55-3c0f7f0a4b5e", name="extract-part")
    found.prepare_for_flow_run(run)
    assert found.namespace == "sparse-probing"
    (container,) = pod(found.job_manifest)["containers"]
    assert container["image"].startswith("images.example.org/")
    assert container["args"] == ["prefect", "flow-run", "execute"]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert len(environment) == len(container["env"])
    assert environment["SPARSE_PROBING_DATA"]["value"] == "s3://studies/data"
    assert "secretKeyRef" in environment["AWS_SECRET_ACCESS_KEY"]["valueFrom"]
    assert environment["PREFECT__FLOW_RUN_ID"]["value"] == str(run.id)
    # A pod that the cluster evicts has its run scheduled anew.
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"]["value"] == "reschedule"
    assert not {"LD_PRELOAD", "PYTHONPATH"} & set(environment)


def test_compose_has_no_secret_and_listens_on_this_machine_alone() -> None:
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    for name, service in found["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable) or "@" in str(value):
                assert re.search(r"\$\{\w+:\?", value), f"{variable} of {name} is written out"
    server = found["services"]["server"]["environment"]
    assert server["PREFECT_API_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")
    assert server["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"


def test_the_slurm_script_parses_and_names_what_is_missing() -> None:
    script = DEPLOY / "slurm-worker.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    done = subprocess.run(
        ["bash", str(script)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "PREFECT_API_URL: the address of the Prefect server" in done.stderr
