"""Progress of long steps: bars in a terminal, lines elsewhere, and a progress artifact in Prefect.

A step is known by its name; any thread may report on it.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
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
LINE_INTERVAL_SECONDS = 20.0
# A step that took less needs no line to say so.
BRIEF_SECONDS = 2.0
PREFECT_STEP = "Start Prefect"

_lock = threading.RLock()
_display: Bars | Lines | None = None
_done: dict[str, int] = {}
_advancing: dict[tuple[str, str], PageProgress] = {}
# Before the study's name in a tag of its runs (`flows.starting.tags_of`).
STUDY_TAG = "study: "


class Bars:
    """A bar for every step, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<38}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._ids: dict[str, TaskID] = {}
        self._bars.start()

    def show(self, name: str, done: int, total: int, unit: str) -> None:
        """Draw a step at `done` of `total`; a total of 0 is not known."""
        if name not in self._ids:
            self._ids[name] = self._bars.add_task(name, total=total or None)
        self._bars.update(self._ids[name], completed=done, total=total or None)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._bars.stop()


@dataclass
class _Step:
    began: float
    done: int
    total: int
    unit: str
    said: float
    first: int


class Lines:
    """Lines for a file or a pipe: when a step begins, when it ends, and at least every `LINE_INTERVAL_SECONDS` between."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._began = clock()
        self._steps: dict[str, _Step] = {}
        self._closed = threading.Event()

    def start(self) -> None:
        """Remind of steps that say nothing for long, from a thread of its own, until `close`."""
        threading.Thread(target=self._remind, name="progress-lines", daemon=True).start()

    def show(self, name: str, done: int, total: int, unit: str) -> None:
        """Note a step at `done` of `total`; a total of 0 is not known."""
        with _lock:
            now = self._clock()
            step = self._steps.get(name)
            if step is None:
                step = self._steps[name] = _Step(now, done, total, unit, now, done)
                self.say(name if not total else f"{name}: {total:,} {unit}".rstrip())
                if total and done >= total:
                    return
            was_finished = bool(step.total) and step.done >= step.total
            step.done, step.total = done, total
            if total and done >= total and not was_finished:
                if now - step.began >= BRIEF_SECONDS:
                    self.say(f"{name}: done in {_duration(now - step.began)}")
            else:
                self.remind(now)

    def say(self, text: str) -> None:
        """Print a line with the time since the command began."""
        self._write(f"[{_duration(self._clock() - self._began):>7}] {text}")

    def remind(self, now: float) -> None:
        """Print a line for each unfinished step that none was printed for in a while."""
        with _lock:
            for name, step in self._steps.items():
                if (step.total and step.done >= step.total) or now - step.said < LINE_INTERVAL_SECONDS:
                    continue
                step.said = now
                elapsed = now - step.began
                if not step.total:
                    self.say(f"{name}: {_duration(elapsed)} so far")
                    continue
                text = f"{name}: {step.done:,} of {step.total:,} {step.unit}".rstrip()
                if step.done > step.first:
                    left = (step.total - step.done) * elapsed / (step.done - step.first)
                    text += f", {_duration(left)} left"
                self.say(text)

    def close(self) -> None:
        """Stop reminding."""
        self._closed.set()

    def _remind(self) -> None:
        while not self._closed.wait(1.0):
            self.remind(self._clock())


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@contextmanager
def show_progress(console: Console, *, with_prefect: bool = True) -> Iterator[None]:
    """Show every step that reports while the context is open: bars in a terminal, lines in a file or a pipe."""
    global _display
    display: Bars | Lines
    if console.is_terminal:
        display = Bars(console)
    else:
        display = Lines(lambda line: print(line, flush=True))
        display.start()
    _display = display
    # Its first start in a home folder takes a while, and says nothing itself.
    if with_prefect:
        _show(PREFECT_STEP, 0, 0, "")
    try:
        yield
    finally:
        _display = None
        display.close()
        _done.clear()


def _show(name: str, done: int, total: int, unit: str) -> None:
    with _lock:
        if _display is not None:
            _display.show(name, done, total, unit)


def say_and_log(text: str) -> None:
    """A line for the terminal, and for the log of the task's run if there is one."""
    say(text)
    if TaskRunContext.get() is not None:
        get_run_logger().warning(text)


def say(text: str) -> None:
    """Print something that is no progress, such as what is waited for."""
    with _lock:
        if _display is not None:
            _display.say(text)


def prefect_started() -> None:
    """Say so: the first thing that a flow does."""
    _show(PREFECT_STEP, 1, 1, "")


def advance(name: str, total: int, unit: str = "layers", *, of: str = "") -> None:
    """Report one more finished unit out of `total` of the named step; `of` as that of `reporter`."""
    with _lock:
        _done[name] = done = _done.get(name, 0) + 1
        _show(name, done, total, unit)
        key = (name, of)
        sent = _advancing.get(key) or _advancing.setdefault(key, PageProgress(name, of, brief=True))
    sent.send(done, total)
    if done >= total:
        with _lock:
            _advancing.pop(key, None)
            if _display is None:
                # Nobody counts on: the same step of another study begins at nothing.
                _done.pop(name, None)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Show a step that cannot say how far it is."""
    _show(name, 0, 0, "")
    yield
    _show(name, 1, 1, "")


def reporter(name: str, unit: str, *, of: str = "") -> Callable[[int, int], None]:
    """A callback ``(done, total)`` for the named step, shown at once and sent to Prefect every few seconds.

    Parameters
    ----------
    of:
        What else tells this step from others of its name in the study: a model, a part.
    """
    sent = PageProgress(name, of)

    def report(done: int, total: int) -> None:
        _show(name, done, total, unit)
        sent.send(done, total)

    return report


class PageProgress:
    """A progress artifact at Prefect's page, renewed every few seconds; outside of a run there is none.

    Its key has the step, the study and what the step is of, so that no two studies, models or parts write to one.

    Parameters
    ----------
    brief:
        Whether the step may be over before anybody looks: then it has an artifact only from `ARTIFACT_INTERVAL_SECONDS` on.
    """

    def __init__(self, name: str, of: str = "", *, brief: bool = False) -> None:
        study = _study()
        self.key = artifact_key(name, study, of)
        where = ", ".join(part for part in (of, f"study {study}" if study else "") if part)
        self.description = f"{name} ({where})" if where else name
        self._in_run = FlowRunContext.get() is not None or TaskRunContext.get() is not None
        self._artifact: UUID | None = None
        self._sent_at = time.monotonic() if brief else -math.inf
        # Several threads may report on one step.
        self._sending = threading.Lock()

    def send(self, done: int, total: int) -> None:
        """Renew the artifact, unless it was renewed just now and more is to come."""
        with self._sending:
            now = time.monotonic()
            is_last = done >= total and self._artifact is not None
            if not self._in_run or total <= 0 or (now - self._sent_at < ARTIFACT_INTERVAL_SECONDS and not is_last):
                return
            self._sent_at = now
            percent = min(100.0, 100.0 * done / total)
            if self._artifact is None:
                created = create_progress_artifact(percent, key=self.key, description=self.description)
                self._artifact = created  # type: ignore[assignment]
            else:
                update_progress_artifact(self._artifact, percent)


def artifact_key(*parts: str) -> str:
    """Key of an artifact at Prefect's page, which takes lower case, digits and dashes alone."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def _study() -> str:
    """Name of the study that the flow's run belongs to, by its tags (`flows.starting.tags_of`); empty where it has none."""
    context = FlowRunContext.get()
    tags = context.flow_run.tags if context is not None and context.flow_run is not None else ()
    return next((tag.removeprefix(STUDY_TAG) for tag in tags if tag.startswith(STUDY_TAG)), "")


def step_of(model: str, revision: str, part: tuple[int, int] | None = None) -> str:
    """What a step is of: a model, its revision where that is not the usual one, and which part (i, n) where it is shared."""
    name = model if revision == "main" else f"{model} at {revision}"
    return name if part is None else f"{name}, part {part[0]} of {part[1]}"
