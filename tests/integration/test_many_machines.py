"""Workers of several machines, which share an object store and nothing else: what one process makes, also when one is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from flows.own_server import read_state
from flows.pool import CPU_POOL, GPU_POOL, POOL_TYPE
from sparse_probing import run_study
from sparse_probing.warehouse import connect
from tests.integration.conftest import Cli
from tests.integration.services import Services, crashed_when_silent, other_study, services_in, wait_until
from tests.integration.test_platform import in_parts, parts_of
from tests.integration.test_run_study import ARTIFACTS, artifact_files
from tests.object_store import ObjectStore

pytestmark = [pytest.mark.slow, pytest.mark.platform]
ROOT = Path(__file__).parents[2]
BUCKET = "machines"


@dataclass
class Machine:
    """A worker of each pool of parts, in a folder of its own, that takes one part at a time."""

    folder: Path
    workers: dict[str, psutil.Popen]

    def log(self, pool: str) -> str:
        return (self.folder / f"{pool}.log").read_text()

    def is_at_work(self, pool: str) -> bool:
        return bool(self.workers[pool].children(recursive=True))

    def die(self) -> None:
        """At once, with everything that it started."""
        for worker in self.workers.values():
            if worker.poll() is None:
                for one in (*worker.children(recursive=True), worker):
                    with contextlib.suppress(psutil.Error):
                        one.kill()
                worker.wait()


@contextmanager
def machine(folder: Path, services: Services) -> Iterator[Machine]:
    folder.mkdir()
    environment = (
        os.environ
        | services.server.environment()
        | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PYTHONPATH": str(ROOT),
            "SPARSE_PROBING_DATA": services.uri,
            "SPARSE_PROBING_LOCAL": str(folder / "local"),
        }
    )
    workers = {}
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for pool in (GPU_POOL, CPU_POOL):
            with (folder / f"{pool}.log").open("w") as stream:
                arguments = ["--pool", pool, "--type", POOL_TYPE, "--name", folder.name, "--limit", "1"]
                workers[pool] = psutil.Popen(
                    [sys.executable, "-m", "prefect", "worker", "start", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=environment,
                    cwd=folder,
                    start_new_session=True,
                )
    finally:
        signal.signal(signal.SIGINT, previous)
    found = Machine(folder, workers)
    try:
        yield found
    finally:
        found.die()


@pytest.fixture
def services(object_store: ObjectStore, cli: Cli, tmp_path: Path) -> Iterator[Services]:
    """A server and a worker for studies; the workers of parts are those of the machines."""
    object_store.make_bucket(BUCKET)
    uri = object_store.uri(f"{BUCKET}/a/prefix")
    with services_in(tmp_path / "first" / "local", cli, uri=uri, n_stopped=2) as started:
        for name in ("worker-gpu", "worker-cpu"):
            worker = psutil.Process(read_state(started.settings)[name]["pid"])
            worker.kill()
            with contextlib.suppress(psutil.Error):
                worker.wait(30)
        yield started


def test_machines_make_what_one_process_makes_also_when_one_dies(
    services: Services, object_store: ObjectStore, tiny_profile: Path, tmp_path: Path
) -> None:
    profile = other_study(tiny_profile, tmp_path, 26)
    with (
        crashed_when_silent(services, 90.0),
        machine(tmp_path / "second", services) as second,
        machine(tmp_path / "third", services) as third,
    ):
        assert services.completed(in_parts(services, profile))
        for pool in (GPU_POOL, CPU_POOL):
            assert "submitting flow run" in second.log(pool)
            assert "submitting flow run" in third.log(pool)
        equal_files(object_store, profile, tmp_path / "alone")

        longer = tmp_path / "longer"
        longer.mkdir()
        profile = other_study(tiny_profile, longer, 31)
        text = profile.read_text(encoding="utf-8")
        profile.write_text(text.replace("n_permutations = 50", "n_permutations = 4000"), encoding="utf-8")
        known = {run["id"] for run in parts_of(services, "probe-part")}
        run_id = in_parts(services, profile)
        # It took a part, which has hardly begun.
        wait_until(lambda: third.is_at_work(CPU_POOL), 0.5)
        third.die()
        assert services.completed(run_id)
        states = [run["state"]["type"] for run in parts_of(services, "probe-part") if run["id"] not in known]
        assert "CRASHED" in states
        assert states.count("COMPLETED") == 4
        equal_files(object_store, profile, longer / "alone")

    # Whoever reads, on whichever machine, finds one database with the runs of both studies.
    with connect(services.data / "results.duckdb") as results:
        assert results.execute("select count(*) from runs").fetchall() == [(4,)]
        assert results.execute("select count(*) from check_duplicate_keys").fetchall() == [(0,)]


def equal_files(object_store: ObjectStore, profile: Path, alone: Path) -> None:
    """A study of this process alone, in a folder, has the same files, byte for byte, under the same names."""
    run_study(profile, data=alone, say=lambda line: None)
    mine = artifact_files(alone)
    found = {
        key.removeprefix("a/prefix/"): content
        for key, content in object_store.objects(BUCKET).items()
        if key.split("/")[2] in ARTIFACTS
    }
    assert [name for name in mine if mine[name] != found.get(name)] == []
