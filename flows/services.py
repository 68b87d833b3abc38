"""A Prefect server, its pools and deployments, and workers on this machine: started and stopped by one command each.

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from flows.history import COLUMNS, study_runs
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
from flows.pool import (
    CPU_POOL,
    GPU_POOL,
    POOL,
    POOL_TYPE,
    POOLS,
    PROJECT,
    child_environment,
    deploy_all,
    need_checkout,
    say,
    watch_checkpoints,
    watchable,
)
from flows.server_api import Server
from flows.surroundings import PATIENCE, answers, server_in_use
from sparse_probing.errors import InputError, SparseProbingError
from sparse_probing.settings import Settings

# Names of the workers in the record of what was started, and the pool of each.
WORKERS = {"worker": POOL, "worker-gpu": GPU_POOL, "worker-cpu": CPU_POOL}
WORD_SECONDS = 10.0
START_SECONDS = 120.0
STOP_SECONDS = 30.0


def _worker_online(server: Server, pool: str, since: datetime) -> bool:
    """Whether a worker gave a sign of life since then: one that was killed stays online in the server's eyes for a while."""
    try:
        workers = server.ask(f"work_pools/{pool}/workers/filter", {})
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


def up(settings: Settings, *, port: int, watched: Sequence[str] = ()) -> int:
    """Start everything; what runs already is left alone. Returns the exit code.

    Parameters
    ----------
    watched:
        Profiles whose checkpoints are studied as they appear.
    """
    need_checkout()
    profiles = [watchable(profile) for profile in watched]
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
        for name in WORKERS:
            state |= _left_worker(left, name, server, settings)
        say(f"Server    starting; its log is {logs / 'server.log'}")
        command = [sys.executable, "-m", "flows.server_process", "--host", "127.0.0.1", "--port", str(port)]
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
    starting: dict[str, datetime] = {}
    for name, pool in WORKERS.items():
        if process(state, name) is None:
            say(f"Worker    starting; its log is {logs / f'{name}.log'}")
            # With its type it needs no server to start, should that be away again.
            arguments = ["--pool", pool, "--type", POOL_TYPE, "--name", "local"]
            command = [sys.executable, "-m", "prefect", "worker", "start", *arguments]
            starting[name] = datetime.now(UTC)
            state[name] = _start(command, logs / f"{name}.log", environment)
            write_state(settings, state)
    for name, began in starting.items():
        ready = partial(_worker_online, server, WORKERS[name], began)
        _wait("Worker", ready, state, name, logs)
    for pool in WORKERS.values():
        say(f"Worker    at work in pool {pool}")
    for profile, study in profiles:
        watch_checkpoints(server, profile, study)
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


def _left_worker(state: dict[str, Any], name: str, server: Server, settings: Settings) -> dict[str, Any]:
    """The entry of a worker that outlived its server, if it will find the new one; one that would not is stopped."""
    found = process(state, name)
    if found is None:
        return {}
    try:
        # What it was started with is what it keeps.
        known = found.environ()
    except psutil.Error:
        known = {}
    if all(known.get(key) == value for key, value in _worker_environment(server, settings).items()):
        say(f"Worker    (process {found.pid}) outlived its server, and waits for the new one")
        return {name: state[name]}
    say(f"Worker    (process {found.pid}) outlived its server at {state['api_url']}: stopping it")
    _stop([found], signal.SIGINT)
    return {}


def _worker_environment(server: Server, settings: Settings) -> dict[str, str]:
    """What a worker, and the runs that it starts, must be told."""
    return server.environment() | {"SPARSE_PROBING_DATA": settings.data_uri, "PREFECT_WORKER_QUERY_SECONDS": "2"}


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
    """Make pools, automations and deployments on the server that Prefect is told to use, or that `up` started here.

    Raises
    ------
    InputError
        If there is no such server, or it does not let us in.
    """
    need_checkout()
    server = _server_to_use(settings)
    api_url = server.api_url
    if server.is_open():
        say(f"Server    {api_url} asks for no password: whoever reaches it can make its workers run commands.")
        say("          How to close it: docs/servers.md")
    deploy_all(server, child_environment(server))
    say("Next:")
    say(f"  export PREFECT_API_URL={api_url}")
    if server.password:
        say("  export PREFECT_API_AUTH_STRING=…        # the server's user:password, from a file of mode 600")
    for pool, what in POOLS.items():
        say(f"  prefect worker start --pool {pool:<20} # on machines for {what}")
    say("  prefect deployment run study/study --param profile=demo")
    return 0


def _server_to_use(settings: Settings) -> Server:
    """The server that Prefect is told to use, or that `up` started here.

    Raises
    ------
    InputError
        If there is no such server, or it does not answer.
    """
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
    return server_at(api_url, settings)


def watch(settings: Settings, profile: str, seconds: int) -> int:
    """Have new checkpoints of a profile studied as they appear, on the server in use or the one that `up` started."""
    found = watchable(profile)
    watch_checkpoints(_server_to_use(settings), *found, seconds=seconds)
    say(f"Next: sparse-probing checkpoints scan --profile {profile}")
    return 0


def runs(settings: Settings, limit: int, format: str) -> int:
    """Print what ran on the server in use, or the one that `up` started."""
    from sparse_probing.reports.tables import format_rows

    found = study_runs(_server_to_use(settings), limit=limit)
    cells = [["" if row[name] is None and format == "table" else row[name] for name in COLUMNS] for row in found]
    print(format_rows(COLUMNS, cells, format=format))
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
    """Stop the workers, then the server. Returns the exit code."""
    state = read_state(settings)
    workers = {name: process(state, name) for name in WORKERS}
    _stop([found for found in workers.values() if found is not None], signal.SIGINT)
    server = process(state, "server")
    _stop([server] if server is not None else [], signal.SIGTERM)
    for name, found in {**workers, "server": server}.items():
        print(f"{name}: {'not running' if found is None else 'stopped'}", flush=True)
    state_file(settings).unlink(missing_ok=True)
    return 0


def _stop(found: Sequence[psutil.Process], how: signal.Signals) -> None:
    """Ask processes to end, all at once, and end those that do not."""
    for one in found:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(how)
    for one in psutil.wait_procs(found, STOP_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            for child in [*one.children(recursive=True), one]:
                child.kill()
