"""How tasks are retried and how they share scarce devices. No computation."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.variables import Variable

from sparse_probing.errors import CheckFailure, DamageError, DataError, InputError
from tasks.progress import say

GPU_LIMIT = "gpu"
# A lost worker's slot is free again after this long.
GPU_LEASE_SECONDS = 60.0
# The server tells nobody who holds a limit: whoever takes it leaves a word in this variable of Prefect's.
HOLDER_VARIABLE = "gpu_limit_taken_by"
FIRST_WORD_SECONDS = 3.0
NEXT_WORD_SECONDS = 30.0


def worth_retrying(task: Any, run: Any, state: Any) -> bool:
    """Whether another try could end differently: bad input, damaged files and failed checks stay what they are."""
    try:
        state.result()
    except (InputError, DataError, DamageError, CheckFailure):
        return False
    except Exception:
        return True
    return False


# What decides whether work is done again is the artifact's digest, so Prefect's cache stays out of it.
POLICY: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [2, 10],
    "retry_condition_fn": worth_retrying,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the device: one extraction at a time on the server that runs share; who waits says for whom.

    Without a server (the ephemeral API of one process) there is nobody to share with, and a limit held by a killed
    process would outlive it.
    """
    # Prefect's settings know the server that a profile names; the environment does not.
    if not get_current_settings().api.url:
        yield
        return
    taken = threading.Event()
    waiting = threading.Thread(target=_say_who_holds, args=(taken, _logger()), name="waiting-for-device", daemon=True)
    waiting.start()
    try:
        with concurrency(GPU_LIMIT, occupy=1, strict=True, lease_duration=GPU_LEASE_SECONDS):
            taken.set()
            Variable.set(HOLDER_VARIABLE, _who_i_am(), overwrite=True)
            yield
    finally:
        taken.set()


def _say_who_holds(taken: threading.Event, logger: Any) -> None:
    """Until the device is ours: now and then, what is waited for and who has it."""
    began = time.monotonic()
    pause = FIRST_WORD_SECONDS
    while not taken.wait(pause):
        pause = NEXT_WORD_SECONDS
        text = (
            f"Waiting for the device ({time.monotonic() - began:.0f} s so far): limit {GPU_LIMIT!r} was last taken by "
            f"{_holder()}."
        )
        say(text)
        if logger is not None:
            logger.info(text)


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return None


def _holder() -> str:
    try:
        return str(Variable.get(HOLDER_VARIABLE, default="a run that left no name"))
    except Exception:  # as above
        return "a run that cannot be asked for now"


def _who_i_am() -> str:
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    name = f"flow run {run.name!r}" if run is not None else "a run outside of any flow"
    return f"{name} (process {os.getpid()} on {socket.gethostname()}) at {datetime.now(UTC):%H:%M:%S} UTC"
