"""A line in a run's log when a unit of work is done, with its numbers: what a person at Prefect's page wants to see.

The terminal of the command line shows bars instead (`tasks.progress`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

from sparse_probing.store.manifests import Manifest


@contextmanager
def logged(work: str, **known: object) -> Iterator[dict[str, object]]:
    """Log one line when the work inside is done, with what is known of it before and what it adds; none if it fails."""
    numbers: dict[str, object] = dict(known)
    began = time.monotonic()
    yield numbers
    log(work, **numbers, seconds=round(time.monotonic() - began, 2))


def log(work: str, **numbers: object) -> None:
    """Log a line ``work: name value, name value, …`` for the task's or flow's run, if there is one."""
    if TaskRunContext.get() is not None or FlowRunContext.get() is not None:
        get_run_logger().info("%s", line(work, numbers))


def line(work: str, numbers: Mapping[str, object]) -> str:
    """The line's text; what is None is left out."""
    parts = (f"{name.replace('_', ' ')} {_text(value)}" for name, value in numbers.items() if value is not None)
    return f"{work}: {', '.join(parts)}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def stored_bytes(manifest: Manifest, under: str = "") -> int:
    """Bytes of an artifact's files, or of those whose names begin with `under`."""
    return sum(entry.size_bytes for name, entry in manifest.files.items() if name.startswith(under))


def as_ranges(numbers: Iterable[int]) -> str:
    """Numbers as ranges: ``0–5 and 7``."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return " and ".join(str(first) if first == last else f"{first}–{last}" for first, last in ranges)


def facts_of(manifest: Manifest, *names: str) -> dict[str, Any]:
    """Some of a manifest's facts, by the names that people read: `n_rows` as ``rows``."""
    return {name.removeprefix("n_"): manifest.facts.get(name) for name in names}
