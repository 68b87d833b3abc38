"""What a run makes of parts that ended badly."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import TerminationSignal
from prefect.states import Crashed, Failed

from flows.parts import SET_ASIDE, DamageSetAsideError, mending, raise_failed
from sparse_probing.errors import SparseProbingError

DAMAGED = f"Flow run encountered an exception: activations/x differs from its manifest. It {SET_ASIDE}."


def ended(name: str, message: str) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name=name, state=Failed(message=message))


def test_parts_that_fail_because_another_set_damage_aside_do_not_end_the_study() -> None:
    """The whole artifact is set aside: the other part may be reading another layer of it."""
    taken_away = ended("part 1 of 2", "1 activations of tiny are not finished, the first of text at mlp.")
    for failed in ([ended("part 0 of 2", DAMAGED)], [taken_away, ended("part 0 of 2", DAMAGED)]):
        with pytest.raises(DamageSetAsideError, match=r"part 0 of 2: .* differs from its manifest"):
            raise_failed(failed)


def test_the_first_of_other_faults_is_named_and_the_rest_counted() -> None:
    raise_failed([])
    faults = [
        ended("part 1 of 3", "No space left"),
        FlowRun(flow_id=uuid4(), name="part 2 of 3", state=Crashed(message="killed")),
    ]
    with pytest.raises(SparseProbingError, match=r"\(and 1 more\): part 1 of 3: No space left") as raised:
        raise_failed(faults)
    assert not isinstance(raised.value, DamageSetAsideError)


@pytest.mark.parametrize("message", ["Query interrupted", "another"])
def test_what_an_interrupted_query_says_is_a_signal_and_no_other_fault_is(message: str) -> None:
    """DuckDB swallows what Prefect raises at the signal; a part that failed, and did not crash, would not be started again."""
    with pytest.raises(TerminationSignal if message == "Query interrupted" else RuntimeError), mending():
        raise RuntimeError(message)
