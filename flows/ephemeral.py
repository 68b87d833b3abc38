"""No ephemeral server outlives its command: a small process waits for the command to end and stops what it left.

Without a server Prefect starts one for the command, in a process of its own, and stops it when the command ends by itself. A
command that is killed can stop nothing, and that process would stay. Linux alone could tie a child to its parent, and only
from inside the child; a watching process does on macOS, too. Where a process cannot see that its parent is gone (Windows)
nothing is watched.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "SPARSE_PROBING_COMMAND"
# How it is started here, and by Prefect where that did not answer; nothing else that the command started is touched.
FACTORY = "flows.server_process:create_app"
FACTORIES = {FACTORY, "prefect.server.api.server:create_app"}
LOOK_SECONDS = 0.5
STOP_SECONDS = 5.0

_begun: tuple[subprocess.Popen[bytes], int] | None = None


def begin_server() -> None:
    """Start the ephemeral server (`flows.server_process`) before Prefect is imported: both take seconds, side by side half as many."""
    global _begun
    if _begun is not None and _begun[0].poll() is None:
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    # The folder that holds this package, wherever the command was started.
    folder = Path(__file__).resolve().parents[1]
    arguments = ["--app-dir", str(folder), "--factory", FACTORY, "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--log-level", "error", "--lifespan", "on"]
    settings = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    process = subprocess.Popen([sys.executable, "-m", "uvicorn", *arguments], env=os.environ | settings)
    atexit.register(process.terminate)
    _begun = (process, port)


def adopt_server() -> None:
    """Hand the server that `begin_server` started to Prefect once it answers; else Prefect starts one of its own."""
    if _begun is None:
        return
    process, port = _begun
    import httpx
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    if server.running:
        return
    end = time.monotonic() + float(os.environ.get("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90"))
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/api/health").is_success:
                server.port, server.server_process, server.running = port, process, True
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    process.kill()


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
            if FACTORIES & set(process.cmdline()) and process.environ().get(MARK) == mark:
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
