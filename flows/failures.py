"""Whatever ended a flow, as one line for the terminal. What lies behind it is in the log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
from prefect.exceptions import PrefectHTTPStatusError

from flows.server_api import configured_server, refused
from flows.surroundings import answers, server_in_use
from sparse_probing.credentials import without_secrets
from sparse_probing.errors import SparseProbingError
from tasks.progress import say

AGAIN = "The same command goes on where this one stopped."
# A server is asked this often; one that does not answer is waited for as long as Prefect's clients try again
# (`surroundings.PATIENCE`): a restart, of its machine too.
ASK_SECONDS = 2.0
WAIT_SECONDS = 240.0
FIRST_WORD_SECONDS = 6.0
NEXT_WORD_SECONDS = 30.0


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
    # Before the text is cut: what is left of a secret would not be known for one.
    text = " ".join(without_secrets(str(error)).split())[:300].rstrip(".")
    return SparseProbingError(f"{type(error).__name__}: {text}.", remedy=f"Details are in {log}. {AGAIN}")


def _gone(api_url: str) -> SparseProbingError:
    return SparseProbingError(
        f"The Prefect server at {api_url} went away while the study ran, and did not come back.",
        remedy=f"Start it again (sparse-probing up). {AGAIN}",
    )


@contextmanager
def end_with_the_server(api_url: str, end: Callable[[], None] | None = None) -> Iterator[None]:
    """Say when the server is away, and end this process in one line when it stays away.

    All that is finished is on disk by then, as after any kill; `end` replaces the sudden end.
    """

    def stop() -> None:
        # Whatever Prefect's threads still have to say about it has been said by this.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"sparse-probing: {_gone(api_url)}\n".encode())
        os._exit(SparseProbingError.exit_code)

    with _watched(api_url, say, end or stop):
        yield


@contextmanager
def say_when_the_server_is_away(api_url: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say when the server is away, and when it is back; what becomes of the run is left to Prefect."""
    with _watched(api_url, say, lambda: None):
        yield


@contextmanager
def _watched(api_url: str, say: Callable[[str], None], end: Callable[[], None]) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        heard, said = time.monotonic(), 0.0
        while not done.wait(ASK_SECONDS):
            now = time.monotonic()
            away = now - heard
            if answers(api_url):
                if said:
                    say(f"The Prefect server at {api_url} answers again, after {away:.0f} s.")
                heard, said = now, 0.0
            elif away > WAIT_SECONDS:
                end()
                return
            elif away >= FIRST_WORD_SECONDS and now - said >= NEXT_WORD_SECONDS:
                said = now
                say(
                    f"The Prefect server at {api_url} does not answer, for {away:.0f} s so far. "
                    f"Waiting for it, at most {WAIT_SECONDS:.0f} s. To start it again: sparse-probing up"
                )

    threading.Thread(target=watch, name="watch-server", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def retry_first_connections() -> None:
    """Have Prefect's clients try again when nobody listens at the server's port, from their first request on.

    By default only a client that has been connected before tries again, and Prefect makes a new one for each artifact,
    variable and slot: a server that is started anew would fail whatever comes first.
    """
    for client in (PrefectHttpxSyncClient, PrefectHttpxAsyncClient):
        client._has_connected = property(lambda _: True, lambda _, value: None)  # type: ignore[assignment]


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
