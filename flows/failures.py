"""Whatever ended a flow, as one line for the terminal. What lies behind it is in the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
from prefect.exceptions import PrefectHTTPStatusError

from flows.surroundings import answers, server_in_use
from sparse_probing.errors import SparseProbingError

AGAIN = "The same command goes on where this one stopped."


def as_one_line(error: BaseException, *, log: Path) -> SparseProbingError:
    """The failure that a user can act on: the first of this project's own behind an exception, or what took its place."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, SparseProbingError):
            return one
    api_url = server_in_use()
    from_server = any(isinstance(one, (httpx.TransportError, PrefectHTTPStatusError)) for one in chain)
    if api_url and (from_server or not answers(api_url)):
        return SparseProbingError(
            f"The Prefect server at {api_url} went away while the study ran.",
            remedy=f"Start it again (sparse-probing up). {AGAIN}",
        )
    text = " ".join(str(error).split())[:300].rstrip(".")
    return SparseProbingError(f"{type(error).__name__}: {text}.", remedy=f"Details are in {log}. {AGAIN}")


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
