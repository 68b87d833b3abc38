"""One owner at a time; a lock comes free when its owner ends, however that happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sparse_probing.store import locks
from sparse_probing.store.filesystem import Location
from sparse_probing.store.locks import held, owned

HOLDER = """
import sys, time
from pathlib import Path
from sparse_probing.store.locks import held
with held(Path(sys.argv[1]), what="it", say=print):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_who_waits_says_for_whom_and_goes_on_when_the_holder_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "FIRST_WORD_SECONDS", 0.2)
    path = tmp_path / "folder" / "one.lock"
    child = holder(path)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        os.kill(child.pid, signal.SIGKILL)

    with held(path, what="run r1", say=say):
        child.communicate()
    (line,) = said
    assert line.startswith("Waiting for run r1 (0 s so far): process ")
    assert f"process {child.pid} on " in line


def test_threads_of_one_process_take_turns(tmp_path: Path) -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with owned(Location.open(tmp_path), Location.open(tmp_path / "results" / "r1"), say=lambda text: None):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert [path.name for path in (tmp_path / locks.LOCKS).iterdir()] == ["results--r1.lock"]


def test_other_artifacts_are_not_waited_for(tmp_path: Path) -> None:
    root = Location.open(tmp_path)
    with owned(root, root / "a", say=pytest.fail), owned(root, root / "b", say=pytest.fail):
        pass
