"""A Prefect server, its pool and deployments, and a worker on this machine: started and stopped by one command each.

The server asks for a password, answers no web page but its own, and takes no change without a CSRF token.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from flows.own_server import (
    listens,
    password,
    password_file,
    process,
    read_state,
    running_server,
    server_at,
    state_file,
    write_state,
)
from flows.pool import POOL, POOL_TYPE, PROJECT, child_environment, deploy_all, need_checkout, say
from flows.server_api import Server
from flows.surroundings import PATIENCE, answers, server_in_use
from sparse_probing.errors import InputError, SparseProbingError
from sparse_probing.settings import Settings

WORD_SECONDS = 10.0
START_SECONDS = 120.0
STOP_SECONDS = 30.0


def _worker_online(server: Server, since: datetime) -> bool:
    """Whether a worker gave a sign of life since then: one that was killed stays online in the server's eyes for a while."""
    try:
        workers = server.ask(f"work_pools/{POOL}/workers/filter", {})
    except SparseProbingError:
        return False
    return any(
        worker["status"] == "ONLINE" and datetime.fromisoformat(worker["last_heartbeat_time"]) > since
        for worker in workers
    )


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


def up(settings: Settings, *, port: int) -> int:
    """Start everything; what runs already is left alone. Returns the exit code."""
    need_checkout()
    settings.local_dir.mkdir(parents=True, exist_ok=True)
    logs = settings.local_dir / "logs"
    logs.mkdir(exist_ok=True)
    server = running_server(settings)
    state = read_state(settings)
    if server is None:
        _need_no_silent_server(state)
        _need_free_port(port)
        left = state
        state = {"api_url": f"http://127.0.0.1:{port}/api", "protected": True}
        server = Server(str(state["api_url"]), password(settings), source=str(password_file(settings)))
        state |= _left_worker(left, server, settings)
        say(f"Server    starting; its log is {logs / 'server.log'}")
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        state["server"] = _start(command, logs / "server.log", _server_environment(server))
        write_state(settings, state)
        # The password goes to nobody who only came to have the port.
        _wait("Server", lambda: answers(server.api_url) and listens(state), state, "server", logs)
    say(f"Server    {server.api_url.removesuffix('/api')}")
    if state.get("protected"):
        say(f"Password  in {password_file(settings)}; the page in the browser asks for what is in there")
    else:
        say("Server    open to everyone on this machine, and to web pages: an older version started it.")
        say("          To protect it: sparse-probing down, then sparse-probing up")
    environment = dict([PATIENCE]) | os.environ | _worker_environment(server, settings)
    deploy_all(server, environment)
    if process(state, "worker") is None:
        say(f"Worker    starting; its log is {logs / 'worker.log'}")
        # With its type it needs no server to start, should that be away again.
        arguments = ["--pool", POOL, "--type", POOL_TYPE, "--name", "local"]
        command = [sys.executable, "-m", "prefect", "worker", "start", *arguments]
        began = datetime.now(UTC)
        state["worker"] = _start(command, logs / "worker.log", environment)
        write_state(settings, state)
        _wait("Worker", lambda: _worker_online(server, began), state, "worker", logs)
    say(f"Worker    at work in pool {POOL}")
    say("Next:")
    say(f"  export PREFECT_API_URL={server.api_url}")
    if state.get("protected"):
        say(f'  export PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(password_file(settings)))})"')
    say("  prefect deployment run study/study --param profile=demo")
    say("  sparse-probing study --profile demo     # uses this server, and finds its password")
    say("  sparse-probing down")
    return 0


def _need_no_silent_server(state: dict[str, Any]) -> None:
    found = process(state, "server")
    if found is not None:
        raise InputError(
            f"The server that was started before (process {found.pid}) lives, and does not answer at {state['api_url']}.",
            remedy="Wait if it is only starting; else stop it: sparse-probing down",
        )


def _left_worker(state: dict[str, Any], server: Server, settings: Settings) -> dict[str, Any]:
    """The entry of a worker that outlived its server, if it will find the new one; one that would not is stopped."""
    found = process(state, "worker")
    if found is None:
        return {}
    try:
        # What it was started with is what it keeps.
        known = found.environ()
    except psutil.Error:
        known = {}
    if all(known.get(name) == value for name, value in _worker_environment(server, settings).items()):
        say(f"Worker    (process {found.pid}) outlived its server, and waits for the new one")
        return {"worker": state["worker"]}
    say(f"Worker    (process {found.pid}) outlived its server at {state['api_url']}: stopping it")
    _stop(found, signal.SIGINT)
    return {}


def _worker_environment(server: Server, settings: Settings) -> dict[str, str]:
    """What a worker, and the runs that it starts, must be told."""
    return server.environment() | {"SPARSE_PROBING_DATA": settings.data_uri}


def _server_environment(server: Server) -> dict[str, str]:
    """Environment of the server's process. Settings that Prefect knows under two names are given under both."""
    port = urllib.parse.urlsplit(server.api_url).port
    # The page calls the API by its address, also where the user opened it by name.
    origins = f"http://127.0.0.1:{port},http://localhost:{port}"
    protection = {
        "PREFECT_SERVER_API_AUTH_STRING": server.password,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origins,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    }
    # A killed run's slot must come free even when the server is started anew.
    leases = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
    return child_environment(server) | protection | leases


def deploy(settings: Settings) -> int:
    """Make pool, automation and deployments on the server that Prefect is told to use, or that `up` started here.

    Raises
    ------
    InputError
        If there is no such server, or it does not let us in.
    """
    need_checkout()
    own = running_server(settings)
    api_url = server_in_use() or (own.api_url if own else "")
    if not api_url:
        raise InputError(
            "No Prefect server is named, and none was started here.",
            remedy="Set PREFECT_API_URL to the server's address, or run: sparse-probing up",
        )
    if not answers(api_url):
        raise InputError(
            f"The Prefect server at {api_url} does not answer.", remedy="Start it, or mend PREFECT_API_URL."
        )
    server = server_at(api_url, settings)
    if server.is_open():
        say(f"Server    {api_url} asks for no password: whoever reaches it can make its workers run commands.")
        say("          How to close it: docs/servers.md")
    deploy_all(server, child_environment(server))
    say("Next:")
    say(f"  export PREFECT_API_URL={api_url}")
    if server.password:
        say("  export PREFECT_API_AUTH_STRING=…        # the server's user:password, from a file of mode 600")
    say(f"  prefect worker start --pool {POOL}      # on each machine that shall work")
    say("  prefect deployment run study/study --param profile=demo")
    return 0


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
        if process(state, name) is None or now > began + START_SECONDS:
            raise SparseProbingError(f"The {name} did not start.", remedy=f"See {logs / f'{name}.log'}.")
        if now - said >= WORD_SECONDS:
            said = now
            say(f"{what:<9} not ready yet, after {now - began:.0f} s")
        time.sleep(0.5)


def down(settings: Settings) -> int:
    """Stop the worker, then the server. Returns the exit code."""
    state = read_state(settings)
    for name in ("worker", "server"):
        found = process(state, name)
        if found is None:
            print(f"{name}: not running")
            continue
        _stop(found, signal.SIGINT if name == "worker" else signal.SIGTERM)
        print(f"{name}: stopped", flush=True)
    state_file(settings).unlink(missing_ok=True)
    return 0


def _stop(found: psutil.Process, how: signal.Signals) -> None:
    found.send_signal(how)
    try:
        found.wait(STOP_SECONDS)
    except psutil.TimeoutExpired:
        for child in [*found.children(recursive=True), found]:
            child.kill()
