"""The publisher is killed while it loads, while it copies, and once it has published: nothing is lost, nothing counted twice."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sparse_probing import run_study
from sparse_probing.warehouse import connect
from tests.integration.conftest import ROOT, Cli
from tests.integration.services import other_study

pytestmark = pytest.mark.slow
DATABASES = ("results.duckdb", "working.duckdb", "published.json")


def runs_in(data: Path) -> dict[str, int]:
    """How many scores the published database has of each run."""
    with connect(data / "results.duckdb") as results:
        found = results.execute("select run_id, count(*) from neuron_scores group by run_id").fetchall()
        listed = {run_id for (run_id,) in results.execute("select run_id from runs").fetchall()}
        assert results.execute("select count(*) from check_duplicate_keys").fetchall() == [(0,)]
    assert listed == {run_id for run_id, _ in found}
    return dict(found)


def killed_when(seen: Callable[[], bool], command: list[str], environment: dict[str, str], log: Path) -> bool:
    """Start a command and kill it, with all that it started, once something is seen; whether it came to that."""
    with log.open("w") as stream:
        started = psutil.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    try:
        while not (found := seen()) and started.poll() is None:
            time.sleep(0.001)
        return found
    finally:
        for one in (started, *started.children(recursive=True)):
            one.kill()
        started.wait()


def test_a_publisher_may_be_killed_at_any_point(
    tiny_profile: Path, tmp_path: Path, cli: Cli, prefect_environment: dict[str, str]
) -> None:
    data = tmp_path / "data"
    run_study(tiny_profile, data=data, say=lambda line: None)
    before = runs_in(data)
    for name in DATABASES:
        shutil.copy2(data / name, tmp_path / name)
    profile = other_study(tiny_profile, tmp_path, 23)
    run_study(profile, data=data, say=lambda line: None)
    after = runs_in(data)
    assert set(before) < set(after)

    old = (tmp_path / "results.duckdb").stat().st_mtime_ns
    points: dict[str, tuple[Callable[[], bool], set[str]]] = {
        "while it loads": (lambda: (data / "working.duckdb.wal").exists(), set(before)),
        "while it copies": (lambda: any(data.glob(".tmp-publish-results.duckdb-*")), set(before)),
        "when it has published": (lambda: (data / "results.duckdb").stat().st_mtime_ns != old, set(after)),
    }
    command = [sys.executable, "-m", "flows.cli", "--data", str(data), "publish", "--profile", str(profile)]
    for point, (seen, expected) in points.items():
        for name in DATABASES:
            shutil.copy2(tmp_path / name, data / name)
        (data / "working.duckdb.wal").unlink(missing_ok=True)
        log = tmp_path / "log"
        for left in data.glob(".tmp-publish-*"):
            left.unlink()
        assert killed_when(seen, command, prefect_environment, log), (point, log.read_text())
        # Whoever reads sees what was there, or all that there is.
        assert set(runs_in(data)) == expected, point
        again = cli("publish", "--profile", str(profile), data=data)
        assert again.returncode == 0, (point, again.stdout + again.stderr)
        assert runs_in(data) == after, point
