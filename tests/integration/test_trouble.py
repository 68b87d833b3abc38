"""Runs and checks that fail are reported, on a real server: as an artifact, and through a block that sends to a real port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.automations import NAME, REPORT, definition
from flows.pool import POOLS
from flows.server_api import Server
from tasks.trouble import ALERTS, TROUBLE
from tests.integration.conftest import Cli, free_port
from tests.integration.services import FINAL, Services, services_in, wait_until

ROOT = Path(__file__).parents[2]
BURST_SECONDS = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.platform]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Iterator[Services]:
    with services_in(tmp_path_factory.mktemp("services") / "data", cli) as started:
        yield started


@pytest.fixture
def messages() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Address of a server that takes messages, and those that it got."""
    got: list[dict[str, str]] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Taker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", got
        server.shutdown()


def automations(server: Server) -> list[dict[str, Any]]:
    return list(server.ask("automations/filter", {"automations": {"name": {"any_": [NAME]}}}))


def test_there_is_one_automation_however_often_it_is_deployed(services: Services, cli: Cli) -> None:
    server = services.server
    (made,) = automations(server)
    assert made["actions"][0]["deployment_id"] == services.deployment(REPORT)["id"]
    # What its owner changed stays, as long as this version would make the same.
    server.ask(f"automations/{made['id']}", {"enabled": False}, method="PATCH")
    assert cli("deploy", data=services.data).returncode == 0
    assert automations(server) == [{**made, "enabled": False, "updated": automations(server)[0]["updated"]}]
    # As an older version made it, turned off, and twice.
    older = definition(services.deployment(REPORT)["id"], ["sparse-probing"]) | {"enabled": False}
    server.ask(f"automations/{made['id']}", older, method="PUT")
    server.ask("automations/", older)
    assert len(automations(server)) == 2
    assert cli("up", "--port", str(services.port), data=services.data).returncode == 0
    (mended,) = automations(server)
    assert (mended["id"], mended["tags"], mended["enabled"]) == (made["id"], made["tags"], False)
    related = mended["trigger"]["triggers"][1]["match_related"]
    assert related[0]["prefect.resource.name"] == sorted(POOLS)
    server.ask(f"automations/{made['id']}", {"enabled": True}, method="PATCH")


def test_what_fails_is_reported_once_and_a_report_that_fails_starts_none(
    services: Services, messages: tuple[str, list[dict[str, str]]], tiny_profile: Path, tmp_path: Path
) -> None:
    server = services.server
    address, got = messages
    (made,) = automations(server)
    shorter = definition(services.deployment(REPORT)["id"], list(POOLS), BURST_SECONDS)
    server.ask(f"automations/{made['id']}", shorter, method="PUT")
    make_block(server, address)

    # Four runs that fail at nearly the same time, for two reasons, are one report.
    runs = [
        start(server, "datasets", name)
        for name in ("missing-a.toml", "missing-b.toml", "missing-b.toml", "missing-b.toml")
    ]
    assert [last_state(server, run) for run in runs] == ["FAILED"] * 4
    wait_until(lambda: reports(server) == ["COMPLETED"], 1.0)
    text = trouble(server)
    assert text.startswith("# In the last 24 h: 4 runs failed or crashed, 0 checks failed")
    assert "run failed**: `datasets missing-b.toml`, 3 times" in text
    assert f"prefect flow-run logs {runs[0]}" in text
    assert f"http://127.0.0.1:{services.port}/runs/flow-run/{runs[0]}" in text
    assert [(one["subject"], one["body"]) for one in got] == [(text.splitlines()[0].removeprefix("# "), text)]

    # A run that fails as one did before is listed, and no news.
    assert last_state(server, start(server, "datasets", "missing-b.toml")) == "FAILED"
    wait_until(lambda: reports(server) == ["COMPLETED"] * 2, 1.0)
    assert "`datasets missing-b.toml`, 4 times" in trouble(server)
    assert len(got) == 1

    # A message that cannot be sent: the list is there all the same, and the report that failed starts no other.
    make_block(server, f"http://127.0.0.1:{free_port()}/")
    assert last_state(server, start(server, "datasets", "missing-c.toml")) == "FAILED"
    wait_until(lambda: reports(server) == ["COMPLETED"] * 2 + ["FAILED"], 1.0)
    assert "`datasets missing-c.toml`" in trouble(server)

    # A check that fails, of a study that ends well otherwise; and the message that could not be sent before.
    make_block(server, address)
    text = tiny_profile.read_text(encoding="utf-8")
    profile = tmp_path / "few.toml"
    profile.write_text(text.replace("sequences_per_class = 24", "sequences_per_class = 8"), encoding="utf-8")
    last_state(server, start(server, "study", str(profile)))
    wait_until(lambda: len(reports(server)) >= 4 and reports(server)[-1] in FINAL, 1.0)
    assert reports(server) == ["COMPLETED"] * 2 + ["FAILED"] + ["COMPLETED"]
    text = trouble(server)
    assert REPORT not in text
    assert "check failed (" in text
    assert "study `tiny`" in text
    assert 'sparse-probing sql "select * from validation_checks where name = ' in text
    assert len(got) == 2
    assert "missing-c.toml" in got[1]["body"]


def start(server: Server, deployment: str, profile: str) -> str:
    found = server.ask(f"deployments/name/{deployment}/{deployment}")
    return str(server.ask(f"deployments/{found['id']}/create_flow_run", {"parameters": {"profile": profile}})["id"])


def last_state(server: Server, run_id: str) -> str:
    """A run's state when it has ended."""
    wait_until(lambda: server.ask(f"flow_runs/{run_id}")["state"]["type"] in FINAL, 1.0)
    return str(server.ask(f"flow_runs/{run_id}")["state"]["type"])


def reports(server: Server) -> list[str]:
    """States of the reports that began, the first first."""
    wanted = {
        "deployments": {"name": {"any_": [REPORT]}},
        "flow_runs": {"start_time": {"is_null_": False}},
        "sort": "START_TIME_ASC",
    }
    return [str(run["state"]["type"]) for run in server.ask("flow_runs/filter", wanted)]


def trouble(server: Server) -> str:
    wanted = {"artifacts": {"key": {"any_": [TROUBLE]}}, "sort": "CREATED_DESC", "limit": 1}
    return str(server.ask("artifacts/filter", wanted)[0]["data"])


def make_block(server: Server, address: str) -> None:
    """A notification block under the name that reports are sent through, as an operator would make it."""
    code = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook\n"
        f"block = Webhook(name='alerts', url={address!r}, json_data={{'subject': '{{{{subject}}}}', 'body': '{{{{body}}}}'}})\n"
        f"block.save({ALERTS!r}, overwrite=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | server.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
