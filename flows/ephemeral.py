"""No ephemeral server outlives its command: a small process waits for the command to end and stops what it left.

Without a server Prefect starts one for the command, in a process of its own, and stops it when the command ends by itself. A
command that is killed can stop nothing, and that process would stay. Linux alone could tie a child to its parent, and only
from inside the child; a watching process does on macOS, too. Where a process cannot see that its parent is gone (Windows)
nothing is watched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

MARK = "SPARSE_PROBING_COMMAND"
# How Prefect starts it; nothing else that the command started is touched.
FACTORY = "prefect.server.api.server:create_app"
LOOK_SECONDS = 0.5
STOP_SECONDS = 5.0


def leave_no_server() -> None:
    """Have the ephemeral server that this process starts stopped when this process is gone, however it went."""
    if os.name != "posix":
        return
    # Prefect hands its own environment on to the server: it is known by this.
    mark = os.environ[MARK] = uuid.uuid4().hex
    subprocess.Popen(
        [sys.executable, "-P", __file__, str(os.getpid()), mark],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C and a closed terminal reach the command, not its watcher.
        start_new_session=True,
    )


def stop_servers(mark: str) -> int:
    """Stop the ephemeral servers that were started under this mark; returns how many."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if FACTORY in process.cmdline() and process.environ().get(MARK) == mark:
                process.terminate()
                found.append(process)
        except psutil.Error:
            continue
    for process in psutil.wait_procs(found, timeout=STOP_SECONDS)[1]:
        process.kill()
    return len(found)


def watch(parent: int, mark: str) -> None:
    """Until the parent is gone; then stop what it left."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    stop_servers(mark)


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
