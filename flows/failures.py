"""Whatever ended a flow, as one line for the terminal. What lies behind it is in the log."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.exceptions import PrefectHTTPStatusError

from flows.server_api import configured_server, refused
from flows.surroundings import answers, server_in_use
from sparse_probing.errors import SparseProbingError

AGAIN = "The same command goes on where this one stopped."
# A server of this kind is asked this often, and is gone when its port refused this often in a row.
ASK_SECONDS = 2.0
REFUSALS = 3
# One that is merely silent, as behind a lost network, is given longer than a restart takes.
SILENT_SECONDS = 120.0


def as_one_line(error: BaseException, *, log: Path) -> SparseProbingError:
    """The failure that a user can act on: the first of this project's own behind an exception, or what took its place."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, SparseProbingError):
            return one
    api_url = server_in_use()
    for one in chain:
        if api_url and isinstance(one, PrefectHTTPStatusError) and one.response.status_code in (401, 403):
            return refused(configured_server(api_url), one.response.status_code)
    from_server = any(isinstance(one, (httpx.TransportError, PrefectHTTPStatusError)) for one in chain)
    if api_url and (from_server or not answers(api_url)):
        return _gone(api_url)
    text = " ".join(str(error).split())[:300].rstrip(".")
    return SparseProbingError(f"{type(error).__name__}: {text}.", remedy=f"Details are in {log}. {AGAIN}")


def _gone(api_url: str) -> SparseProbingError:
    return SparseProbingError(
        f"The Prefect server at {api_url} went away while the study ran.",
        remedy=f"Start it again (sparse-probing up). {AGAIN}",
    )


@contextmanager
def end_with_the_server(api_url: str, end: Callable[[], None] | None = None) -> Iterator[None]:
    """End this process in one line when the server goes away: Prefect's own clients would try again for minutes.

    All that is finished is on disk by then, as after any kill; `end` replaces the sudden end.
    """
    done = threading.Event()

    def stop() -> None:
        # Whatever Prefect's threads still have to say about it has been said by this.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"sparse-probing: {_gone(api_url)}\n".encode())
        os._exit(SparseProbingError.exit_code)

    def watch() -> None:
        refusals, heard = 0, time.monotonic()
        while not done.wait(ASK_SECONDS):
            if answers(api_url):
                refusals, heard = 0, time.monotonic()
                continue
            refusals = refusals + 1 if _refuses(api_url) else 0
            if refusals >= REFUSALS or time.monotonic() - heard > SILENT_SECONDS:
                (end or stop)()
                return

    threading.Thread(target=watch, name="watch-server", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _refuses(api_url: str) -> bool:
    """Whether nobody listens at the server's port."""
    address = urllib.parse.urlsplit(api_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=ASK_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, those of its group, and what each was raised from or during."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        one = pending.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            pending.extend(one.exceptions)
        pending.extend(earlier for earlier in (one.__cause__, one.__context__) if earlier is not None)
