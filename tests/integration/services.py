"""A server, its pools, workers and deployments as `up` starts them, for tests of several files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.own_server import running_server
from flows.pool import SILENT_SECONDS, automation, unbegun_automation
from flows.server_api import Server
from sparse_probing.settings import Settings
from tests.integration.conftest import HOMES, Cli, free_port

# Signs of life more often than every 180 s, for tests that wait for one that is missing.
HEARTBEATS = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass
class Services:
    """What `up` started for the tests of this file."""

    data: Path
    port: int
    said: str
    # Where the data folder is, if it is not the folder of the databases, `data`.
    uri: str = ""

    @property
    def settings(self) -> Settings:
        return Settings(data_uri=self.uri or str(self.data), local_dir=self.data, device="auto")

    @property
    def server(self) -> Server:
        # On a busy machine it may not answer at once.
        deadline = time.monotonic() + 120
        while (found := running_server(self.settings)) is None:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(1)
        return found

    def deployment(self, name: str) -> dict[str, Any]:
        return next(one for one in self.server.ask("deployments/filter", {}) if one["name"] == name)

    def wait_for(self, run_id: str) -> str:
        """A flow run's last state."""
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            state = str(self.server.ask(f"flow_runs/{run_id}")["state"]["type"])
            if state in FINAL:
                return state
            time.sleep(1)
        raise AssertionError((self.data / "logs" / "worker.log").read_text()[-3000:])

    def completed(self, run_id: str) -> bool:
        """Whether a flow run completed; what failed is printed, for whoever reads why a test did."""
        state = self.wait_for(run_id)
        if state != "COMPLETED":
            wanted = {"flow_runs": {"state": {"type": {"any_": ["FAILED", "CRASHED"]}}}, "limit": 50}
            for run in self.server.ask("flow_runs/filter", wanted):
                print(run["name"], run["state"]["type"], run["state"]["message"])
        return state == "COMPLETED"


@contextmanager
def services_in(data: Path, cli: Cli, *, uri: str = "", n_stopped: int = 4) -> Iterator[Services]:
    """Everything started, and stopped at the end: a server and three workers, of which a test may have stopped some.

    What another server of these tests ran is not on this one: it has a Prefect home of its own.
    """
    port = free_port()
    HOMES[str(data)] = data.with_name("prefect")
    more = {"SPARSE_PROBING_LOCAL": str(data), **HEARTBEATS}
    try:
        started = cli("up", "--port", str(port), data=uri or data, more=more)
        assert started.returncode == 0, started.stdout + started.stderr
        yield Services(data, port, started.stdout, uri)
    finally:
        stopped = cli("down", data=uri or data, more=more)
    assert stopped.stdout.count("stopped") == n_stopped


@contextmanager
def crashed_when_silent(services: Services, seconds: float) -> Iterator[None]:
    """Have runs marked as crashed after so short a silence, in place of ten minutes."""

    def put(wanted: dict[str, Any]) -> None:
        named = {"automations": {"name": {"any_": [wanted["name"]]}}}
        (made,) = services.server.ask("automations/filter", named)
        services.server.ask(f"automations/{made['id']}", wanted, method="PUT")

    for made in (automation, unbegun_automation):
        put(made(seconds))
    try:
        yield
    finally:
        for made in (automation, unbegun_automation):
            put(made(SILENT_SECONDS))


def other_study(tiny_profile: Path, folder: Path, sequences: int) -> Path:
    """A profile of a study that is not finished: with more sequences than that of `tiny_profile`."""
    text = tiny_profile.read_text(encoding="utf-8")
    profile = folder / "other.toml"
    profile.write_text(text.replace("sequences_per_class = 24", f"sequences_per_class = {sequences}"), encoding="utf-8")
    return profile


def wait_until(done: Callable[[], bool], pause_seconds: float = 0.1) -> None:
    deadline = time.monotonic() + 300
    while not done():
        if time.monotonic() > deadline:
            pytest.fail("it never came to that")
        time.sleep(pause_seconds)
