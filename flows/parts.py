"""Parts of a stage as runs of deployments of their own, started and waited for by the run whose work they share.

Which worker takes a part, and where, is Prefect's: parts share the data folder and nothing else. What is done when all have
ended is read off the artifacts, by whoever started them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from flows.starting import tags_of
from sparse_probing.config import StudySpec
from sparse_probing.errors import DamageError, InputError, SparseProbingError
from tasks.logs import log
from tasks.repair import set_aside_damage

# A part whose worker or process was killed is started again this often.
MOST_CRASHES = 3
ASK_SECONDS = 1.0
# A run that no worker took for so long is worth a word.
UNTAKEN_SECONDS = 30.0
NEXT_WORD_SECONDS = 300.0
# What a part's message says that set damage aside.
SET_ASIDE = "was set aside by this part"
INTERRUPTED = "Query interrupted"


class DamageSetAsideError(SparseProbingError):
    """A part found damage and set it aside: what it was part of has to be made anew before the parts go on."""


def can_start_parts(n_parts: int) -> bool:
    """Whether there is more than one part, and a server whose workers take them. Without one, this process does it all."""
    context = FlowRunContext.get()
    return bool(n_parts > 1 and get_current_settings().api.url and context is not None and context.flow_run is not None)


def run_parts(flow: str, study: StudySpec, parts: Sequence[Mapping[str, Any]]) -> None:
    """Start a run of deployment ``<flow>/<flow>`` for each part, and wait until all have ended.

    A part that crashed is started again. The others go on when one fails: what they do is kept.

    Parameters
    ----------
    parts:
        Parameters of each, beside ``spec``.

    Raises
    ------
    InputError
        If the server has no such deployment.
    DamageSetAsideError
        If a part found a damaged file; its artifact was set aside, and the parts that read it with that one may have failed.
    SparseProbingError
        If a part failed, was cancelled, or crashed for the last time.
    """
    began = time.monotonic()
    with get_client(sync_client=True) as client:
        waiting = {number: _start(flow, study, part) for number, part in enumerate(parts)}
        crashes = dict.fromkeys(waiting, 0)
        said = dict.fromkeys(waiting, began + UNTAKEN_SECONDS)
        failed: list[FlowRun] = []
        while waiting:
            time.sleep(ASK_SECONDS)
            for number, run_id in list(waiting.items()):
                run = client.read_flow_run(run_id)
                if run.state is None or not run.state.is_final():
                    _say_if_untaken(run, said, number)
                    continue
                if run.state.is_crashed() and crashes[number] < MOST_CRASHES:
                    crashes[number] += 1
                    get_run_logger().warning("%s crashed (%s): it is started again.", run.name, run.state.message)
                    waiting[number] = _start(flow, study, parts[number])
                    continue
                del waiting[number]
                if not run.state.is_completed():
                    failed.append(run)
    raise_failed(failed)
    log(f"Parts of {flow} are done", parts=len(parts), seconds=round(time.monotonic() - began, 1))


def _start(flow: str, study: StudySpec, part: Mapping[str, Any]) -> UUID:
    try:
        run = run_deployment(
            f"{flow}/{flow}",
            parameters={"spec": study.model_dump(mode="json"), **part},
            timeout=0,
            as_subflow=True,
            tags=tags_of(study),
            # A request that is sent twice, to a server that was away, starts one run.
            idempotency_key=uuid4().hex,
        )
    except ObjectNotFound as error:
        raise InputError(
            f"The server has no deployment {flow}/{flow}, which a study in parts needs.",
            remedy="Run: sparse-probing deploy   (or leave out parts, for one process)",
        ) from error
    return cast(FlowRun, run).id


def _say_if_untaken(run: FlowRun, said: dict[int, float], number: int) -> None:
    now = time.monotonic()
    if run.start_time is not None or now < said[number]:
        return
    said[number] = now + NEXT_WORD_SECONDS
    if run.state is not None and run.state.is_pending():
        get_run_logger().warning(
            "%s was taken by a worker and has not begun; if that worker is gone it counts as crashed after a while, and is "
            "started again.",
            run.name,
        )
        return
    get_run_logger().warning(
        "%s waits for a worker of pool %s. To start one: prefect worker start --pool %s",
        run.name,
        run.work_pool_name,
        run.work_pool_name,
    )


def raise_failed(failed: Sequence[FlowRun]) -> None:
    """What the parts that ended badly say, as one error: damage that was set aside before all else."""
    if not failed:
        return
    said = [f"{run.name}: {run.state.message if run.state else 'no state'}" for run in failed]
    set_aside = [line for line in said if SET_ASIDE in line]
    if set_aside:
        # The others may have failed for nothing but that: what they read was taken from under them.
        raise DamageSetAsideError(set_aside[0], remedy="Run the study again: it makes anew what was set aside.")
    rest = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    raise SparseProbingError(
        f"A part did not end well{rest}: {said[0]}", remedy="See its log at Prefect's page, then run the study again."
    )


@contextmanager
def mending() -> Iterator[None]:
    """Inside a part: set aside what turns out to be damaged, and say so to the run that waits for this part.

    A part that is asked to end while DuckDB works crashes, as it does at any other moment, and is started again.
    """
    try:
        yield
    except RuntimeError as error:
        # DuckDB takes what Prefect raised at the signal for its own, and raises this in its place.
        if str(error) != INTERRUPTED:
            raise
        raise TerminationSignal(signal=signal.SIGTERM) from error
    except DamageError as damage:
        set_aside_damage(damage.path)
        raise DamageSetAsideError(
            f"{damage.message} It {SET_ASIDE}.", remedy="Run the study again: it makes anew what was set aside."
        ) from damage
