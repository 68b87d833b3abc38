"""The device is one for each machine: runs on the same one wait for each other, and runs on others do not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Takes the device of a machine and keeps it until told.
RUN = """
import socket, sys
socket.gethostname = lambda: sys.argv[1]
from tasks import policies
policies.FIRST_WORD_SECONDS = 0.5
policies.say = lambda text: print(text, flush=True)
with policies.one_at_a_time():
    print("taken", flush=True)
    sys.stdin.readline()
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(prefect_environment: dict[str, str], prefect_server: str) -> Iterator[Start]:
    """Starts a run on the machine of a name."""
    started: list[subprocess.Popen[str]] = []

    def on(host: str) -> subprocess.Popen[str]:
        run = subprocess.Popen(
            [sys.executable, "-c", RUN, host],
            cwd=ROOT,
            env=prefect_environment | {"PREFECT_API_URL": prefect_server},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(run)
        return run

    yield on
    for run in started:
        run.kill()
        run.communicate()


def line(run: subprocess.Popen[str]) -> str:
    assert run.stdout is not None
    return run.stdout.readline()


@pytest.mark.slow
def test_one_device_a_machine(start: Start) -> None:
    first = start("one")
    assert line(first) == "taken\n"
    # Another machine, with a name that Prefect's names may not have as it is.
    assert line(start("Two.lab/äß")) == "taken\n"
    second = start("one")
    said = line(second)
    assert "'gpu-one' was last taken by" in said
    assert f"process {first.pid} on one" in said
    assert first.stdin is not None
    first.stdin.write("\n")
    first.stdin.flush()
    while said.startswith("Waiting"):
        said = line(second)
    assert said == "taken\n"
