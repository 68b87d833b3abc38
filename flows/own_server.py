"""What `sparse-probing up` started on this machine: its processes, its server's address and its password.

Processes are known by their id and start time in ``services.json``, so that nothing else is ever stopped. The password is
in a file of its own; both files can be read by their owner alone. It is sent to the server that `up` started and to no other.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

import psutil

from flows.server_api import PASSWORD_FILE, Server, configured_server
from flows.surroundings import PATIENCE, THIS_MACHINE, answers, server_in_use
from sparse_probing.errors import InputError
from sparse_probing.settings import Settings

USER = "sparse-probing"
BUSY_SECONDS = 20.0


def password_file(settings: Settings) -> Path:
    """Where the password of the server that `up` starts lies."""
    return settings.local_dir / PASSWORD_FILE


def password(settings: Settings) -> str:
    """The server's ``user:password``; made at the first call. A file that others could read is replaced by a new one."""
    path = password_file(settings)
    found = _private_text(path)
    if not found:
        found = f"{USER}:{secrets.token_urlsafe(32)}"
        write_private(path, found + "\n")
    return found


def _private_text(path: Path) -> str:
    """Text of a file that only its owner, who is this user, can read or write; empty if it is no such file."""
    try:
        with path.open(encoding="utf-8") as stream:
            about = os.fstat(stream.fileno())
            foreign = hasattr(os, "getuid") and (about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077)
            return "" if foreign else stream.read().strip()
    except (OSError, ValueError):
        return ""


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody else can read at any moment, in place of the one that is there."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as stream:
            stream.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def state_file(settings: Settings) -> Path:
    """Where the processes are written down."""
    return settings.local_dir / "services.json"


def read_state(settings: Settings) -> dict[str, Any]:
    """What `up` wrote down; empty if there is nothing."""
    try:
        state = json.loads(state_file(settings).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(settings: Settings, state: dict[str, Any]) -> None:
    """Write down what runs."""
    write_private(state_file(settings), json.dumps(state))


def process(state: dict[str, Any], name: str) -> psutil.Process | None:
    """The recorded process, if it is still the same one."""
    entry = state.get(name)
    if not entry:
        return None
    try:
        found = psutil.Process(entry["pid"])
        same = abs(found.create_time() - entry["created"]) < 1.0
        return found if same and found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def listens(state: dict[str, Any]) -> bool:
    """Whether it is the recorded server that listens at its port, and no other process that came to have it."""
    server = process(state, "server")
    if server is None:
        return False
    port = urllib.parse.urlsplit(str(state["api_url"])).port
    try:
        family = [server, *server.children(recursive=True)]
        connections = [connection for one in family for connection in one.net_connections(kind="tcp")]
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        # A system that does not tell: the process lives, which is all that can be known.
        return True
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


def running_server(settings: Settings) -> Server | None:
    """The server that `up` started, with its password, if it still answers; servers of older versions have none.

    Raises
    ------
    InputError
        If the server has a password whose file is gone, or could be read by others.
    """
    state = read_state(settings)
    # It lives and listens, so it answers when it is less busy.
    if not listens(state) or not answers(str(state["api_url"]), timeout_seconds=BUSY_SECONDS):
        return None
    path = password_file(settings)
    known = _private_text(path) if state.get("protected") else ""
    if state.get("protected") and not known:
        raise InputError(
            f"The password of the server at {state['api_url']} is not in {path}, or others can read that file.",
            remedy="For a new password: sparse-probing down, then sparse-probing up",
        )
    return Server(str(state["api_url"]), known, source=str(path))


def server_at(api_url: str, settings: Settings) -> Server:
    """The server at an address, with the credentials that are meant for it.

    Those of `up` go to its own server, whatever the environment says, and are never sent to another.
    """
    own = running_server(settings)
    if own is not None and _same(own.api_url, api_url):
        return Server(api_url.rstrip("/"), own.password, source=own.source)
    other = configured_server(api_url)
    if other.password and other.password == _private_text(password_file(settings)):
        return Server(other.api_url, api_key=other.api_key, source=other.source)
    return other


def enter_server(settings: Settings) -> None:
    """Make this process, and those that it starts, use the right server with the right credentials.

    The server that `up` started is used unless the environment names another.
    """
    own = running_server(settings)
    if own is not None:
        os.environ.setdefault("PREFECT_API_URL", own.api_url)
    api_url = server_in_use()
    if api_url:
        os.environ.setdefault(*PATIENCE)
        server = server_at(api_url, settings)
        if server != configured_server(api_url):
            os.environ.update(server.environment())


def _same(one: str, other: str) -> bool:
    return _place(one) == _place(other)


def _place(api_url: str) -> tuple[str, int | None, str]:
    parts = urllib.parse.urlsplit(api_url)
    host = parts.hostname or ""
    try:
        port = parts.port
    except ValueError:
        port = None
    return ("127.0.0.1" if host in THIS_MACHINE else host, port, parts.path.rstrip("/"))
