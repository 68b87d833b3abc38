"""A Prefect server, work pool, limit, worker and deployments on this machine: started and stopped by one command each.

Processes are known by their id and start time in ``services.json``, so that nothing else is ever stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from sparse_probing.errors import InputError, SparseProbingError
from sparse_probing.settings import Settings

POOL = "sparse-probing"
START_SECONDS = 120.0
STOP_SECONDS = 30.0
PROJECT = Path(__file__).resolve().parents[1]


def _state_file(settings: Settings) -> Path:
    return settings.local_dir / "services.json"


def _read_state(settings: Settings) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(_state_file(settings).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state


def _process(state: dict[str, Any], name: str) -> psutil.Process | None:
    """The recorded process, if it is still the same one."""
    entry = state.get(name)
    if not entry:
        return None
    try:
        process = psutil.Process(entry["pid"])
        same = abs(process.create_time() - entry["created"]) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def running_server(settings: Settings) -> str | None:
    """API address of the server that `up` started, if it still answers."""
    state = _read_state(settings)
    if _process(state, "server") is None:
        return None
    return str(state["api_url"]) if _healthy(str(state["api_url"])) else None


def _healthy(api_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _worker_online(api_url: str) -> bool:
    request = urllib.request.Request(
        f"{api_url}/work_pools/{POOL}/workers/filter", data=b"{}", headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            workers = json.loads(answer.read())
    except (urllib.error.URLError, OSError):
        return False
    return any(worker["status"] == "ONLINE" for worker in workers)


def _start(command: list[str], log: Path, environment: dict[str, str]) -> dict[str, Any]:
    # A background process of a non-interactive shell inherits SIGINT as ignored, and a Prefect worker then ignores
    # SIGTERM as well: start it with the default handlers.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("ab") as stream:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=PROJECT,
                start_new_session=True,
            )
    finally:
        signal.signal(signal.SIGINT, previous)
    return {"pid": child.pid, "created": psutil.Process(child.pid).create_time()}


def _prefect(*arguments: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines() or [""]
        raise SparseProbingError(f"prefect {' '.join(arguments)} failed: {lines[-1]}", remedy="See the lines above.")


def up(settings: Settings, *, port: int) -> int:
    """Start everything; what runs already is left alone. Returns the exit code."""
    if not (PROJECT / "prefect.yaml").is_file():
        raise InputError("prefect.yaml was not found.", remedy="Run this from a checkout of the project.")
    settings.local_dir.mkdir(parents=True, exist_ok=True)
    api_url = running_server(settings) or f"http://127.0.0.1:{port}/api"
    logs = settings.local_dir / "logs"
    logs.mkdir(exist_ok=True)
    environment = os.environ | {
        "PREFECT_API_URL": api_url,
        "SPARSE_PROBING_DATA": settings.data_uri,
        # A killed run's slot must come free even when the server is started anew.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    state = _read_state(settings)
    if not running_server(settings):
        if _healthy(api_url):
            raise InputError(f"Port {port} is in use by another server.", remedy="Pass --port with a free one.")
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        state = {"api_url": api_url, "server": _start(command, logs / "server.log", environment)}
        _state_file(settings).write_text(json.dumps(state), encoding="utf-8")
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(api_url):
            if _process(state, "server") is None or time.monotonic() > deadline:
                raise SparseProbingError(f"The server did not start; see {logs / 'server.log'}.")
            time.sleep(0.5)
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite", environment=environment)
    if not _has_limit(environment):
        _prefect("gcl", "create", "gpu", "--limit", "1", environment=environment)
    _prefect("--no-prompt", "deploy", "--all", environment=environment)
    if _process(state, "worker") is None:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "local"]
        state["worker"] = _start(command, logs / "worker.log", environment)
        _state_file(settings).write_text(json.dumps(state), encoding="utf-8")
        deadline = time.monotonic() + START_SECONDS
        while not _worker_online(api_url):
            if _process(state, "worker") is None or time.monotonic() > deadline:
                raise SparseProbingError(f"The worker did not start; see {logs / 'worker.log'}.")
            time.sleep(0.5)
    print(f"Server    {api_url.removesuffix('/api')}  (logs in {logs})")
    print(f"Worker    pool {POOL}, deployments study/study and study/study-nightly")
    print("Next:")
    print(f"  PREFECT_API_URL={api_url} {Path(sys.executable).parent / 'prefect'} deployment run study/study")
    print("  sparse-probing study --profile demo     # uses this server")
    print("  sparse-probing down")
    return 0


def _has_limit(environment: dict[str, str]) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "gcl", "inspect", "gpu"],
        env=environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


def down(settings: Settings) -> int:
    """Stop the worker, then the server. Returns the exit code."""
    state = _read_state(settings)
    for name in ("worker", "server"):
        process = _process(state, name)
        if process is None:
            print(f"{name}: not running")
            continue
        process.send_signal(signal.SIGINT if name == "worker" else signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            for child in [*process.children(recursive=True), process]:
                child.kill()
        print(f"{name}: stopped")
    _state_file(settings).unlink(missing_ok=True)
    return 0
