"""What a run may override in the work pool, seen with Prefect's own worker configuration."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prefect.utilities.schema_tools import ValidationError, validate
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from flows.pool import HARMLESS, TEMPLATE, closed_template

HOSTILE = {
    "command": "touch /tmp/x",
    "working_dir": "/tmp",
    "env": {"LD_PRELOAD": "/tmp/x.so"},
    "env.PYTHONPATH": "/tmp",
    "name": "a name",
    "labels": {"team": "a"},
    "stream_output": False,
}


def configured(template: dict[str, Any], values: dict[str, Any]) -> ProcessJobConfiguration:
    """What a worker makes of a pool's template and a run's job variables."""
    return asyncio.run(ProcessJobConfiguration.from_template_and_values(template, values))


def older_template() -> dict[str, Any]:
    """A pool as an older version made it, and as its owner changed it."""
    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    properties["stream_output"]["default"] = False
    properties["command"]["default"] = "nice python -m prefect.engine"
    template["job_configuration"]["working_dir"] = "/srv/studies"
    template["variables"]["required"] = ["env", "name"]
    return template


def test_prefects_own_template_lets_a_run_set_the_command() -> None:
    found = configured(ProcessWorker.get_default_base_job_template(), HOSTILE)
    assert found.command == HOSTILE["command"]


@pytest.mark.parametrize(
    "template",
    [TEMPLATE, closed_template(ProcessWorker.get_default_base_job_template()), closed_template({})],
    ids=["new", "old", "empty"],
)
def test_a_run_sets_nothing_but_words(template: dict[str, Any]) -> None:
    found = configured(template, HOSTILE)
    assert found.command is None
    assert found.working_dir is None
    assert found.env == {}
    assert (found.name, found.labels, found.stream_output) == ("a name", {"team": "a"}, False)
    assert set(template["variables"]["properties"]) == set(HARMLESS)
    for name, value in HOSTILE.items():
        if name not in HARMLESS:
            # As the server checks it.
            with pytest.raises(ValidationError):
                validate({name: value}, template["variables"], raise_on_error=True)
    validate({name: HOSTILE[name] for name in HARMLESS}, template["variables"], raise_on_error=True)


def test_what_the_owner_set_for_all_runs_stays() -> None:
    older = older_template()
    older["variables"]["properties"]["env"]["default"] = {"HF_HOME": "/srv/models"}
    older["job_configuration"]["name"] = "study of {{ ctx.flow_run.name }} under {{ command }}"
    closed = closed_template(older)
    found = configured(closed, {"command": "touch /tmp/x", "working_dir": "/tmp"})
    assert found.command == "nice python -m prefect.engine"
    assert str(found.working_dir) == "/srv/studies"
    assert found.env == {"HF_HOME": "/srv/models"}
    assert found.stream_output is False
    name = closed["job_configuration"]["name"]
    assert name == "study of {{ ctx.flow_run.name }} under nice python -m prefect.engine"
    assert closed["variables"]["required"] == ["name"]
    assert closed_template(closed) == closed, "a second time changes nothing"
