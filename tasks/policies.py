"""How tasks are retried and how they share scarce devices. No computation."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import MissingContextError, ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.variables import Variable

from sparse_probing.errors import CheckFailure, DamageError, DataError, InputError
from tasks.progress import say

# A lost worker's slot is free again after this long.
LEASE_SECONDS = 60.0
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


def device_limit(host: str) -> str:
    """Name of the limit that holds the device of a machine; also a name that Prefect's variables may have."""
    name = re.sub(r"[^a-z0-9]+", "-", host.lower()).strip("-")[:100]
    if name != host.lower():
        # What was left out told hosts apart.
        name = f"{name}-{hashlib.sha256(host.lower().encode()).hexdigest()[:8]}".strip("-")
    return f"gpu-{name}"


def holder_variable(limit: str) -> str:
    """Name of the variable that says who took a limit: the server tells nobody who holds it."""
    return f"{limit}_taken_by"


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the device: one extraction at a time on each machine of those that share a server; who waits says for whom.

    The limit is made where it is missing; one that its owner raised, for a machine with several devices, stays so. Without
    a server (the ephemeral API of one process) there is nobody to share with, and a limit held by a killed process would
    outlive it.
    """
    # Prefect's settings know the server that a profile names; the environment does not.
    if not get_current_settings().api.url:
        yield
        return
    limit = device_limit(socket.gethostname())
    _make_limit(limit)
    taken = threading.Event()
    waiting = threading.Thread(
        target=_say_who_holds, args=(limit, taken, _logger()), name="waiting-for-device", daemon=True
    )
    waiting.start()
    try:
        # A lease that ran out while the server was away is no reason to throw the work away: `strict` alone would.
        with concurrency(
            limit, occupy=1, strict=True, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False
        ):
            taken.set()
            Variable.set(holder_variable(limit), _who_i_am(), overwrite=True)
            yield
    finally:
        taken.set()


def _make_limit(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
            except PrefectHTTPStatusError as error:
                # Another run on this machine was quicker.
                if error.response.status_code != 409:
                    raise


def _say_who_holds(limit: str, taken: threading.Event, logger: Any) -> None:
    """Until the device is ours: now and then, what is waited for and who has it."""
    began = time.monotonic()
    pause = FIRST_WORD_SECONDS
    while not taken.wait(pause):
        pause = NEXT_WORD_SECONDS
        text = (
            f"Waiting for the device ({time.monotonic() - began:.0f} s so far): limit {limit!r} was last taken by "
            f"{_holder(limit)}."
        )
        say(text)
        if logger is not None:
            logger.info(text)


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return None


def _holder(limit: str) -> str:
    try:
        return str(Variable.get(holder_variable(limit), default="a run that left no name"))
    except Exception:  # as above
        return "a run that cannot be asked for now"


def _who_i_am() -> str:
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    name = f"flow run {run.name!r}" if run is not None else "a run outside of any flow"
    return f"{name} (process {os.getpid()} on {socket.gethostname()}) at {datetime.now(UTC):%H:%M:%S} UTC"
