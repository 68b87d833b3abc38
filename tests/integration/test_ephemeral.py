"""A killed study leaves nothing running."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.ephemeral import FACTORY, LOOK_SECONDS, STOP_SECONDS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "terminate"])
def test_the_ephemeral_server_goes_with_a_killed_study(
    how: signal.Signals, tmp_path: Path, tiny_profile: Path, prefect_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "flows.cli", "--data", str(tmp_path), "study", "--profile", str(tiny_profile)]
    with (tmp_path / "said").open("wb") as said:
        study = subprocess.Popen(command, cwd=ROOT, env=prefect_environment, stdout=said, stderr=said)
    family = psutil.Process(study.pid)
    servers: list[psutil.Process] = []
    deadline = time.monotonic() + 120
    while not servers:
        assert study.poll() is None, (tmp_path / "said").read_text()
        if time.monotonic() > deadline:
            pytest.fail("it never came to that")
        servers = [one for one in family.children() if FACTORY in one.cmdline()]
        time.sleep(0.1)
    others = family.children(recursive=True)
    study.send_signal(how)
    study.wait()
    _, left = psutil.wait_procs(others, timeout=LOOK_SECONDS + 2 * STOP_SECONDS + 10)
    # Where nobody collects the dead they stay in the table, and run no longer.
    left = [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for one in left:
        one.kill()
    assert left == []


@pytest.mark.slow
def test_a_study_without_a_server_starts_one_and_ends_quietly(
    tmp_path: Path, tiny_profile: Path, prefect_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "flows.cli", "--data", str(tmp_path), "study", "--profile", str(tiny_profile)]
    with (tmp_path / "said").open("wb") as said, (tmp_path / "errors").open("wb") as errors:
        study = subprocess.Popen(command, cwd=ROOT, env=prefect_environment, stdout=said, stderr=errors)
    family, servers = psutil.Process(study.pid), set[int]()
    while study.poll() is None:
        try:
            servers |= {one.pid for one in family.children() if FACTORY in one.cmdline()}
        except psutil.Error:
            continue
        time.sleep(0.2)
    assert study.returncode == 0, (tmp_path / "errors").read_text()
    # The one that was begun early is the one that Prefect used.
    assert len(servers) == 1
    assert not any(psutil.pid_exists(pid) for pid in servers)
    # As DuckDB's complaints at the end of a process are.
    assert "nanobind" not in (tmp_path / "errors").read_text()


def test_where_the_server_that_was_begun_dies_prefect_starts_its_own(prefect_environment: dict[str, str]) -> None:
    code = """
import psutil
from flows import ephemeral
ephemeral.begin_server()
process, _ = ephemeral._begun
process.kill()
process.wait()
ephemeral.adopt_server()
from prefect import flow

@flow
def two():
    return 2

print("two is", two())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=prefect_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=300,
        check=False,
    )
    assert "two is 2" in done.stdout
