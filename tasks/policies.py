"""How tasks are retried and how they share scarce devices. No computation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from sparse_probing.errors import CheckFailure, DataError, InputError

GPU_LIMIT = "gpu"
# A lost worker's slot is free again after this long.
GPU_LEASE_SECONDS = 60.0


def worth_retrying(task: Any, run: Any, state: Any) -> bool:
    """Whether another try could end differently: bad input and failed checks stay what they are."""
    try:
        state.result()
    except (InputError, DataError, CheckFailure):
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
    """Hold the device: one extraction at a time on the server that runs share.

    Without a server (the ephemeral API of one process) there is nobody to share with, and a limit held by a killed
    process would outlive it.
    """
    if not os.environ.get("PREFECT_API_URL"):
        yield
        return
    with concurrency(GPU_LIMIT, occupy=1, strict=True, lease_duration=GPU_LEASE_SECONDS):
        yield
