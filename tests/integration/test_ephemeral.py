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
