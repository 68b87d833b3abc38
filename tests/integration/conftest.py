"""A small but whole study: the tiny random GPT-NeoX, real text, every step of the pipeline."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from flows.surroundings import answers

ROOT = Path(__file__).parents[2]

PROFILE = """
name = "tiny"
[[models]]
id = "{model}"
dtype = "float32"
[extraction]
shard_tokens = 1024
batch_tokens = 512
calibration_rows = 64
[probing]
k_values = [1, 2, 4]
n_bootstrap = 50
n_permutations = 50
[[collections]]
collection = "natural_lang_id"
context_length = 48
options = {{ sequences_per_class = 24 }}
[[collections]]
collection = "text_features"
context_length = 64
options = {{ sequences_per_class = 30, max_rows = 900 }}
"""


@pytest.fixture(scope="session")
def tiny_profile(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A profile file of the small study."""
    path = tmp_path_factory.mktemp("profile") / "tiny.toml"
    path.write_text(PROFILE.format(model=tiny_model), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prefect_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of subprocesses: a Prefect home of their own, migrated once for all tests of the session."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return environment | {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def prefect_server(prefect_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prefect server for all tests of the session: a study with one of its own takes ten seconds longer."""
    port = free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    # A home of its own: servers of one home share their database, and see each other's runs.
    home = tmp_path_factory.mktemp("server")
    log = home / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.server_process", "--host", "127.0.0.1", "--port", str(port)],
            env=prefect_environment | {"PREFECT_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=ROOT,
        )
    try:
        while not answers(api_url):
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield api_url
    finally:
        server.terminate()
        server.wait()


Cli = Callable[..., subprocess.CompletedProcess[str]]
# Prefect homes by folder of the databases: servers of one home share their runs, automations and artifacts.
HOMES: dict[str, Path] = {}


@pytest.fixture(scope="session")
def cli(prefect_environment: dict[str, str], request: pytest.FixtureRequest) -> Cli:
    """Run the command line in a subprocess; keyword `data` is the data folder.

    Studies use the session's server, unless `server` is False. Keyword `more` adds to its environment. A data folder whose
    services have a Prefect home of their own (`services.services_in`) is used with that.
    """

    def run(
        *arguments: str,
        data: Path | str,
        more: Mapping[str, str] | None = None,
        timeout: float = 900,
        server: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        environment = prefect_environment | dict(more or {})
        home = HOMES.get(environment.get("SPARSE_PROBING_LOCAL") or str(data))
        if home is not None:
            environment["PREFECT_HOME"] = str(home)
        if server and arguments[0] in ("study", "repair"):
            environment = environment | {"PREFECT_API_URL": request.getfixturevalue("prefect_server")}
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "--data", str(data), *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )

    return run


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def mount(*arguments: str) -> str:
    """What `mount` says if it refuses; empty if it does not."""
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or "mount failed"
