"""A Prefect server, work pool, limit, worker and deployments on this machine: started and stopped by one command each.

Processes are known by their id and start time in ``services.json``, so that nothing else is ever stopped.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from flows.surroundings import answers, server_in_use
from sparse_probing.errors import InputError, SparseProbingError
from sparse_probing.settings import Settings

POOL = "sparse-probing"
# As in tasks.policies, which imports Prefect.
GPU_LIMIT = "gpu"
WORD_SECONDS = 10.0
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
    return str(state["api_url"]) if answers(str(state["api_url"])) else None


def _worker_online(api_url: str) -> bool:
    try:
        workers = _ask(api_url, f"work_pools/{POOL}/workers/filter", {})
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
        raise SparseProbingError(
            f"prefect {' '.join(arguments)} failed: {lines[-1]}.", remedy="Run it by hand to see more."
        )


def up(settings: Settings, *, port: int) -> int:
    """Start everything; what runs already is left alone. Returns the exit code."""
    _need_checkout()
    settings.local_dir.mkdir(parents=True, exist_ok=True)
    running = running_server(settings)
    api_url = running or f"http://127.0.0.1:{port}/api"
    logs = settings.local_dir / "logs"
    logs.mkdir(exist_ok=True)
    environment = os.environ | {
        "PREFECT_API_URL": api_url,
        "SPARSE_PROBING_DATA": settings.data_uri,
        # A killed run's slot must come free even when the server is started anew.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    state = _read_state(settings)
    if not running:
        _need_free_port(port)
        _say(f"Server    starting; its log is {logs / 'server.log'}")
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        state = {"api_url": api_url, "server": _start(command, logs / "server.log", environment)}
        _state_file(settings).write_text(json.dumps(state), encoding="utf-8")
        _wait("Server", lambda: answers(api_url), state, "server", logs)
    _say(f"Server    {api_url.removesuffix('/api')}")
    _deploy(api_url, environment)
    if _process(state, "worker") is None:
        _say(f"Worker    starting; its log is {logs / 'worker.log'}")
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "local"]
        state["worker"] = _start(command, logs / "worker.log", environment)
        _state_file(settings).write_text(json.dumps(state), encoding="utf-8")
        _wait("Worker", lambda: _worker_online(api_url), state, "worker", logs)
    _say(f"Worker    at work in pool {POOL}")
    _say("Next:")
    _say(f"  export PREFECT_API_URL={api_url}")
    _say("  prefect deployment run study/study --param profile=demo")
    _say("  sparse-probing study --profile demo     # uses this server")
    _say("  sparse-probing down")
    return 0


def deploy(settings: Settings) -> int:
    """Make pool, limit and deployments on the server that Prefect is told to use, or that `up` started here.

    Raises
    ------
    InputError
        If there is no such server.
    """
    _need_checkout()
    api_url = server_in_use() or running_server(settings)
    if not api_url:
        raise InputError(
            "No Prefect server is named, and none was started here.",
            remedy="Set PREFECT_API_URL to the server's address, or run: sparse-probing up",
        )
    if not answers(api_url):
        raise InputError(
            f"The Prefect server at {api_url} does not answer.", remedy="Start it, or mend PREFECT_API_URL."
        )
    _deploy(api_url, os.environ | {"PREFECT_API_URL": api_url})
    _say("Next:")
    _say(f"  export PREFECT_API_URL={api_url}")
    _say(f"  prefect worker start --pool {POOL}      # on each machine that shall work")
    _say("  prefect deployment run study/study --param profile=demo")
    return 0


def _deploy(api_url: str, environment: dict[str, str]) -> None:
    """Pool, limit and deployments. A pool's and a limit's settings, and schedules turned on, stay as they are."""
    if not _exists(api_url, f"work_pools/{POOL}"):
        _prefect("work-pool", "create", POOL, "--type", "process", environment=environment)
    if not _exists(api_url, f"v2/concurrency_limits/{GPU_LIMIT}"):
        _prefect("gcl", "create", GPU_LIMIT, "--limit", "1", environment=environment)
    _say(f"Pool      {POOL}, with limit {GPU_LIMIT}: one extraction at a time")
    turned_on = _active_schedules(api_url)
    _prefect("--no-prompt", "deploy", "--all", environment=environment)
    off = []
    for deployment in _ask(api_url, "deployments/filter", {}):
        for schedule in deployment["schedules"]:
            if (deployment["name"], str(schedule["schedule"])) in turned_on:
                path = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
                _ask(api_url, path, {"active": True}, method="PATCH")
            elif not schedule["active"]:
                off.append(deployment["name"])
    _say("Deployed  study/study and study/study-nightly")
    if off:
        _say(f"Schedule  of {', '.join(off)} is off; turn it on in the browser, on the deployment's page")


def _active_schedules(api_url: str) -> set[tuple[str, str]]:
    return {
        (deployment["name"], str(schedule["schedule"]))
        for deployment in _ask(api_url, "deployments/filter", {})
        for schedule in deployment["schedules"]
        if schedule["active"]
    }


def _need_checkout() -> None:
    if not (PROJECT / "prefect.yaml").is_file():
        raise InputError("prefect.yaml was not found.", remedy="Run this from a checkout of the project.")


def _need_free_port(port: int) -> None:
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise InputError(f"Port {port} cannot be used: {error}.", remedy="Pass --port with a free one.") from error


def _wait(what: str, ready: Callable[[], bool], state: dict[str, Any], name: str, logs: Path) -> None:
    """Until a started process is ready, with a line every ten seconds."""
    began = said = time.monotonic()
    while not ready():
        now = time.monotonic()
        if _process(state, name) is None or now > began + START_SECONDS:
            raise SparseProbingError(f"The {name} did not start.", remedy=f"See {logs / f'{name}.log'}.")
        if now - said >= WORD_SECONDS:
            said = now
            _say(f"{what:<9} not ready yet, after {now - began:.0f} s")
        time.sleep(0.5)


def _say(text: str) -> None:
    # At once, also into a pipe: whoever watches shall see that something happens.
    print(text, flush=True)


def _ask(api_url: str, path: str, body: dict[str, Any] | None = None, *, method: str | None = None) -> Any:
    """What the server's API answers: to GET without a body, to POST (or `method`) with one."""
    headers = {"Content-Type": "application/json"}
    secret = os.environ.get("PREFECT_API_AUTH_STRING")
    if secret:
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    elif os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['PREFECT_API_KEY']}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{api_url}/{path}", data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def _exists(api_url: str, path: str) -> bool:
    try:
        _ask(api_url, path)
        return True
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise SparseProbingError(
                f"The Prefect server at {api_url} answers {error.code} to {path}.",
                remedy="Set PREFECT_API_AUTH_STRING if it asks for credentials.",
            ) from error
        return False


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
        print(f"{name}: stopped", flush=True)
    _state_file(settings).unlink(missing_ok=True)
    return 0
