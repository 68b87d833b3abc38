"""Parts of studies on workers, and checkpoints that are studied as they appear, on a real server."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch

from flows.history import study_runs
from flows.own_server import read_state
from flows.pool import CPU_POOL, GPU_POOL
from sparse_probing import run_study, scanning
from sparse_probing.config import load_profile
from sparse_probing.planning import plan_study
from sparse_probing.warehouse import connect
from tasks.checkpoints import MOST_ATTEMPTS
from tasks.policies import device_limit
from tests.integration.conftest import Cli
from tests.integration.services import (
    HEARTBEATS,
    Services,
    crashed_when_silent,
    other_study,
    services_in,
    wait_until,
)
from tests.integration.test_run_study import artifact_files

pytestmark = [pytest.mark.slow, pytest.mark.platform]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Iterator[Services]:
    with services_in(tmp_path_factory.mktemp("services") / "data", cli) as started:
        yield started


def in_parts(services: Services, profile: Path) -> str:
    """Start a study whose extraction and layers are shared by two runs; returns its id."""
    body = {"parameters": {"profile": str(profile), "parts": 2}}
    run = services.server.ask(f"deployments/{services.deployment('study')['id']}/create_flow_run", body)
    return str(run["id"])


def parts_of(services: Services, deployment: str) -> list[dict[str, Any]]:
    """The runs of a part's deployment."""
    wanted = {"deployments": {"name": {"any_": [deployment]}}, "limit": 200}
    return list(services.server.ask("flow_runs/filter", wanted))


def test_a_study_in_parts_makes_what_one_process_makes(services: Services, tiny_profile: Path, tmp_path: Path) -> None:
    profile = other_study(tiny_profile, tmp_path, 25)
    assert services.completed(in_parts(services, profile))
    for deployment, pool, n_runs in (("extract-part", GPU_POOL, 3), ("probe-part", CPU_POOL, 4)):
        runs = parts_of(services, deployment)
        # One more of extraction takes the ranges; layers are shared twice.
        assert [run["state"]["type"] for run in runs] == ["COMPLETED"] * n_runs
        assert {run["work_pool_name"] for run in runs} == {pool}
        # At the page they are inside of the study.
        assert all(run["parent_task_run_id"] for run in runs)
        assert all({"study: tiny", "model: tiny-neox"} <= set(run["tags"]) for run in runs)
    (row,) = (row for row in study_runs(services.server, limit=50) if row["parts"])
    assert (row["state"], row["parts"]) == ("Completed", 7)
    # Each tag of a task costs it questions to the server.
    tasks = services.server.ask("task_runs/filter", {"limit": 200})
    assert tasks
    assert [run["name"] for run in tasks if run["tags"]] == []
    equal_files(services, profile, tmp_path)


def test_damage_that_a_part_finds_is_made_anew(services: Services, tiny_profile: Path, tmp_path: Path) -> None:
    """A byte of stored activations differs, and neither size nor time of the file tells: only whoever reads it sees it."""
    profile = other_study(tiny_profile, tmp_path, 29)
    run_study(profile, data=services.data, say=lambda line: None)
    plan = plan_study(load_profile(str(profile)), services.settings)
    for pair in plan.pairs:
        for run_id in pair.run_ids:
            for fragment in (services.data / "results").glob(f"*/{run_id}"):
                shutil.rmtree(fragment)
    path = services.data / str(plan.pairs[0].activations[0].path) / "layer=01" / "part-00000.parquet"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert services.completed(in_parts(services, profile))
    ended = [str(run["state"]["message"]) for run in parts_of(services, "probe-part")]
    assert sum("was set aside by this part" in message for message in ended) == 1
    assert len(list((services.data / "set_aside").iterdir())) == 1
    equal_files(services, profile, tmp_path)


def equal_files(services: Services, profile: Path, folder: Path) -> None:
    """A study of this process alone has the same files, byte for byte, under the same names."""
    runs = run_study(profile, data=folder / "alone", say=lambda line: None)
    mine = artifact_files(folder / "alone")
    assert sum(f"/runs/{run_id}/" in name for name in mine for run_id in runs) >= len(runs)
    theirs = artifact_files(services.data)
    assert [name for name in mine if mine[name] != theirs.get(name)] == []


def test_a_part_that_is_killed_is_started_again(services: Services, tiny_profile: Path, tmp_path: Path) -> None:
    profile = other_study(tiny_profile, tmp_path, 27)
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text.replace("n_permutations = 50", "n_permutations = 4000"), encoding="utf-8")
    known = {run["id"] for run in parts_of(services, "probe-part")}
    run_id = in_parts(services, profile)
    worker = psutil.Process(read_state(services.settings)["worker-cpu"]["pid"])

    def begun() -> bool:
        new = [run for run in parts_of(services, "probe-part") if run["id"] not in known]
        return any(run["state"]["type"] == "RUNNING" for run in new)

    wait_until(begun, 1.0)
    for child in worker.children(recursive=True):
        child.kill()
    assert services.completed(run_id)
    states = [run["state"]["type"] for run in parts_of(services, "probe-part") if run["id"] not in known]
    assert "CRASHED" in states
    assert states.count("COMPLETED") == 4
    equal_files(services, profile, tmp_path)


def test_a_worker_that_dies_with_the_device_gives_it_back(
    services: Services, cli: Cli, tiny_profile: Path, tmp_path: Path
) -> None:
    """The run that holds the device is killed, and its worker, so that nobody says so: lease and run end for want of signs of life."""
    profile = other_study(tiny_profile, tmp_path, 60)
    text = profile.read_text(encoding="utf-8")
    # Long enough to be met at work.
    profile.write_text(text.replace("batch_tokens = 512", "batch_tokens = 64"), encoding="utf-8")
    limit = f"v2/concurrency_limits/{device_limit(socket.gethostname())}"

    def held() -> int:
        found = services.server.find(limit)
        return int(found["active_slots"]) if found else 0

    wait_until(lambda: held() == 0, 1.0)
    known = {run["id"] for run in parts_of(services, "extract-part")}
    with crashed_when_silent(services, 90.0):
        run_id = in_parts(services, profile)
        worker = psutil.Process(read_state(services.settings)["worker-gpu"]["pid"])
        wait_until(lambda: held() == 1, 0.1)
        for process in (worker, *worker.children(recursive=True)):
            process.kill()
        # Nobody gave it back.
        assert held() == 1
        again = cli("up", "--port", str(services.port), data=services.data, more=HEARTBEATS)
        assert again.returncode == 0, again.stdout + again.stderr
        assert services.completed(run_id)
    assert held() == 0
    states = [run["state"]["type"] for run in parts_of(services, "extract-part") if run["id"] not in known]
    assert "CRASHED" in states
    equal_files(services, profile, tmp_path)


SERIES = """
name = "watched"
[[models]]
id = "ignored"
name = "tiny"
dtype = "float32"
[checkpoints]
folder = "checkpoints"
at_once = 2
[extraction]
shard_tokens = 1024
batch_tokens = 512
calibration_rows = 64
[probing]
k_values = [1, 2]
n_bootstrap = 20
n_permutations = 10
[[collections]]
collection = "natural_lang_id"
context_length = 48
options = { sequences_per_class = 24 }
"""


def test_checkpoints_are_studied_as_they_appear_each_once(
    services: Services, cli, tiny_model: Path, tmp_path: Path
) -> None:
    """No command is typed after `checkpoints watch`: one is there, one is incomplete at first, one cannot be studied."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(tiny_model, folder / "step0")
    checkpoint(tiny_model, folder / "step10", lambda weight: weight.flip(0))
    whole = (folder / "step10" / "model.safetensors").read_bytes()
    (folder / "step10" / "model.safetensors").write_bytes(whole[:-100])
    profile = tmp_path / "series.toml"
    profile.write_text(SERIES, encoding="utf-8")
    watched = cli(
        "checkpoints", "watch", "--profile", str(profile), "--seconds", "15", data=services.data, server=False
    )
    assert watched.returncode == 0, watched.stderr
    study = load_profile(str(profile))

    def studied() -> dict[str, bool]:
        found = scanning.scan(study, services.settings, settle_seconds=0)
        return {one.revision: one.studied for one in found}

    wait_until(lambda: studied()["step0"], 2.0)
    (folder / "step10" / "model.safetensors").write_bytes(whole)
    # Scans at the same moment, beside those of the schedule.
    scan = services.deployment("scan-checkpoints")
    for _ in range(2):
        body = {"parameters": {"profile": str(profile)}}
        services.server.ask(f"deployments/{scan['id']}/create_flow_run", body)
    wait_until(lambda: studied()["step10"], 2.0)
    checkpoint(tiny_model, folder / ".step20", lambda weight: torch.full_like(weight, float("nan")))
    (folder / ".step20").rename(folder / "step20")
    wait_until(lambda: len(runs_of_checkpoints(services)) == 2 + MOST_ATTEMPTS, 2.0)
    left_alone = f"failed {MOST_ATTEMPTS} times, and is left alone: .*not finite numbers"
    wait_until(lambda: re.search(left_alone, str(last_scan(services))) is not None, 2.0)
    services.server.ask(f"deployments/{services.deployment('scan watched')['id']}", method="DELETE")
    states = [run["state"]["type"] for run in runs_of_checkpoints(services)]
    assert sorted(states) == ["COMPLETED"] * 2 + ["FAILED"] * MOST_ATTEMPTS
    with connect(services.data / "results.duckdb") as results:
        series = results.execute(
            "select training_step, count(distinct feature) from checkpoint_trajectories where model = 'tiny' "
            "group by training_step order by training_step"
        ).fetchall()
    assert [step for step, _ in series] == [0, 10]
    assert series[0][1] == series[1][1] > 5
    events = services.server.ask("events/filter", {"filter": {"event": {"prefix": ["sparse-probing."]}}, "limit": 50})
    told = [(one["event"], one["payload"].get("revision")) for one in events["events"]]
    for revision in ("step0", "step10", "step20"):
        assert told.count(("sparse-probing.checkpoint.found", revision)) == 1
    assert told.count(("sparse-probing.checkpoint.incomplete", "step10")) == 1
    assert sum(event == "sparse-probing.study.published" for event, _ in told) >= 2


def checkpoint(model: Path, to: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A copy of a model with one of its weights changed."""
    shutil.copytree(model, to)
    weights = safetensors.torch.load_file(model / "model.safetensors")
    name = next(name for name in weights if "layers.1.mlp" in name and name.endswith("weight"))
    changed = weights | {name: change(weights[name]).contiguous()}
    safetensors.torch.save_file(changed, to / "model.safetensors", {"format": "pt"})


def runs_of_checkpoints(services: Services) -> list[dict[str, Any]]:
    wanted = {"deployments": {"name": {"any_": ["study-checkpoint"]}}, "limit": 200}
    return list(services.server.ask("flow_runs/filter", wanted))


def last_scan(services: Services) -> Any:
    """The table that the last scan left at Prefect's page."""
    wanted = {"artifacts": {"key": {"any_": ["checkpoints-watched"]}}, "sort": "CREATED_DESC", "limit": 1}
    return services.server.ask("artifacts/filter", wanted)
