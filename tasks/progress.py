"""Progress of long steps: a bar in the terminal when one is shown, and a progress artifact in Prefect.

A step is known by its name; any thread may report on it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

ARTIFACT_INTERVAL_SECONDS = 3.0

_lock = threading.Lock()
_bars: Progress | None = None
_bar_ids: dict[str, TaskID] = {}
_done: dict[str, int] = {}


@contextmanager
def show_bars(console: Console) -> Iterator[None]:
    """Draw a bar for every step that reports while the context is open."""
    global _bars
    columns = (
        TextColumn("{task.description:<38}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        _bars = bars
        try:
            yield
        finally:
            _bars = None
            _bar_ids.clear()
            _done.clear()


def _draw(name: str, done: int, total: int) -> None:
    with _lock:
        if _bars is None:
            return
        if name not in _bar_ids:
            _bar_ids[name] = _bars.add_task(name, total=total)
        _bars.update(_bar_ids[name], completed=done, total=total)


def advance(name: str, total: int) -> None:
    """Report one more finished unit out of `total` of the named step."""
    with _lock:
        _done[name] = _done.get(name, 0) + 1
        done = _done[name]
    _draw(name, done, total)


def reporter(name: str) -> Callable[[int, int], None]:
    """A callback ``(done, total)`` for the named step, drawn at once and sent to Prefect every few seconds."""
    artifact: UUID | None = None
    sent_at = 0.0
    in_run = FlowRunContext.get() is not None or TaskRunContext.get() is not None

    def report(done: int, total: int) -> None:
        nonlocal artifact, sent_at
        _draw(name, done, total)
        now = time.monotonic()
        if not in_run or total <= 0 or (now - sent_at < ARTIFACT_INTERVAL_SECONDS and done < total):
            return
        sent_at = now
        percent = min(100.0, 100.0 * done / total)
        if artifact is None:
            key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            artifact = create_progress_artifact(percent, key=key, description=name)  # type: ignore[assignment]
        else:
            update_progress_artifact(artifact, percent)

    return report
