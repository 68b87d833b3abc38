"""Tasks that run side by side: on how many threads, and waiting for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

Result = TypeVar("Result")


def threads(max_workers: int) -> TaskRunner[PrefectFuture[Any]]:
    """A task runner on threads, under the type that `flow` asks for; Prefect's own class has a narrower future."""
    return cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner[Any](max_workers=max_workers))


def results_of(futures: Iterable[PrefectFuture[Result]]) -> list[Result]:
    """Wait for tasks and return their results, in order; if any failed, raise what failed first.

    A flow hands on results, never futures: a task that Prefect itself keeps waiting for a failed one ends as "not ready", and
    raises `UnfinishedRun`, which says nothing of the cause.
    """
    waited = list(futures)
    for future in waited:
        future.wait()
    failed = [future for future in waited if not future.state.is_completed()]
    for future in sorted(failed, key=_ended):
        future.result()
    return [future.result() for future in waited]


def _ended(future: PrefectFuture[Any]) -> Any:
    return future.state.timestamp
