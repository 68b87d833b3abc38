"""A real server, pool, worker and deployments: who is let in, what a run may override, and a study run to its end."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.workers.process import ProcessWorker

from flows.failures import ASK_SECONDS, FIRST_WORD_SECONDS
from flows.own_server import password_file, read_state
from flows.pool import AUTOMATION, HEARTBEAT, POOL, SILENT_SECONDS, automation, make_automations
from flows.services import WORKERS
from sparse_probing.config import profile_names
from sparse_probing.warehouse import connect, reads
from tasks.assets import SCHEME
from tests.integration.conftest import Cli, free_port
from tests.integration.services import Services, other_study, services_in, wait_until

ROOT = Path(__file__).parents[2]
FOREIGN = {"Origin": "http://page.example"}

pytestmark = [pytest.mark.slow, pytest.mark.platform]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Iterator[Services]:
    with services_in(tmp_path_factory.mktemp("services") / "data", cli) as started:
        yield started


def answer(
    services: Services, method: str, path: str, body: Any = None, *, password: str = "", headers: dict[str, str]
) -> tuple[int, dict[str, str]]:
    """Status and headers of what the server answers to a bare request."""
    sent = dict(headers)
    if password:
        sent["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{services.port}/{path}", data, sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, {name.lower(): value for name, value in found.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}


def test_what_up_says_works_as_it_stands_in_a_shell(
    services: Services, tiny_profile: Path, prefect_environment: dict[str, str]
) -> None:
    said = services.said.partition("Next:\n")[2]
    commands = [line.strip() for line in said.splitlines() if line.strip().startswith(("export ", "prefect "))]
    assert len(commands) == 3
    commands[-1] = commands[-1].replace("profile=demo", f"'profile={tiny_profile}'")
    asked = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        cwd=ROOT,
        env=prefect_environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    run_id = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", asked.stdout)[0]
    assert services.wait_for(run_id) == "COMPLETED", (services.data / "logs" / "worker.log").read_text()[-3000:]
    # The last lines arrive when the run's process ends, which is after the run.
    wait_for_log(services, run_id, r"^Study tiny is done: runs 2, seconds")
    assert "Layer probed: model tiny-neox" in logged(services, run_id)
    keys = {artifact["key"] for artifact in services.server.ask("artifacts/filter", {})}
    assert {"best-neurons-tiny", "study-summary-tiny", "validation-checks-tiny"} <= keys
    assert {"extract-text-features-tiny-tiny-neox", "build-text-features-tiny-tiny-neox"} <= keys
    summaries = services.server.ask("artifacts/filter", {"artifacts": {"key": {"any_": ["study-summary-tiny"]}}})
    assert re.search(r"\| layer \d, neuron \d+ \|", summaries[0]["data"])
    with connect(services.data / "results.duckdb") as connection:
        (cost, *_) = reads.artifact_costs(connection)
    assert f"| datasets | 2 | {cost.seconds:,.1f} | {cost.bytes:,} |" in summaries[0]["data"]
    assert f"| database | {services.data}/results.duckdb |" in summaries[0]["data"]


def test_what_was_made_from_what_is_told_once_as_assets(services: Services) -> None:
    """Known of the database; no asset has the data folder in it."""
    with connect(services.data / "results.duckdb") as connection:
        known = connection.execute("select path, map_values(inputs) from artifacts").fetchall()
    paths = {path for path, _ in known}
    expected = {path: sorted(one for one in inputs if one in paths) for path, inputs in known}
    wanted = {"filter": {"event": {"prefix": ["prefect.asset."]}}, "limit": 50}
    found: list[dict[str, Any]] = []

    def told() -> bool:
        nonlocal found
        found = services.server.ask("events/filter", wanted)["events"]
        return len(found) >= len(paths) + sum(map(len, expected.values()))

    wait_until(told, pause_seconds=1.0)
    made = [one for one in found if one["event"] == "prefect.asset.materialization.succeeded"]
    upstream = {
        one["resource"]["prefect.resource.id"]: sorted(
            other["prefect.resource.id"].removeprefix(SCHEME)
            for other in one["related"]
            if other["prefect.resource.role"] == "asset"
        )
        for one in made
    }
    assert len(made) == len(upstream)
    assert {key.removeprefix(SCHEME): inputs for key, inputs in upstream.items()} == expected
    assert len(found) == len(made) + sum(map(len, expected.values()))
    assert str(services.data) not in json.dumps(found)


def test_a_wrong_profile_is_refused_when_it_is_asked_for(services: Services) -> None:
    """The page offers the profiles of the package, and takes a path; a name of neither is no run that fails later."""
    for deployment in ("study", "study-nightly", "datasets", "extract", "probe", "publish", "scan-checkpoints"):
        found = services.deployment(deployment)
        assert found["enforce_parameter_schema"]
        offered, path = found["parameter_openapi_schema"]["properties"]["profile"]["anyOf"]
        assert (offered["enum"], path["type"]) == (profile_names(), "string")
        run = f"api/deployments/{found['id']}/create_flow_run"
        code, _ = answer_with_token(services, run, {"parameters": {"profile": "dmeo"}})
        assert code in (409, 422)


def logged(services: Services, run_id: str) -> str:
    """What a run and the flows in it logged to the server, as its page shows it."""
    inside = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}}
    ids = [run_id, *(run["id"] for run in services.server.ask("flow_runs/filter", inside))]
    wanted = {"logs": {"flow_run_id": {"any_": ids}}, "sort": "TIMESTAMP_ASC", "limit": 200}
    return "\n".join(log["message"] for log in services.server.ask("logs/filter", wanted))


def wait_for_log(services: Services, run_id: str, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not re.search(pattern, logged(services, run_id), re.MULTILINE):
        if time.monotonic() > deadline:
            pytest.fail(f"not logged: {pattern}\n{logged(services, run_id)}")
        time.sleep(0.5)


def test_a_web_page_of_another_origin_is_refused(services: Services, tmp_path: Path) -> None:
    run = f"api/deployments/{services.deployment('study')['id']}/create_flow_run"
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    code, said = answer(services, "OPTIONS", run, headers=FOREIGN | asks)
    assert code == 400
    assert "access-control-allow-origin" not in said
    hostile = {"job_variables": {"command": f"touch {tmp_path / 'ran'}"}}
    # A browser sends plain text without asking first; neither does it help to know the password.
    for kind in ("text/plain", "application/json"):
        for password in ("", services.server.password):
            sent = FOREIGN | {"Content-Type": kind}
            code, said = answer(services, "POST", run, hostile, password=password, headers=sent)
            assert code in (401, 403)
            assert "access-control-allow-origin" not in said
    # What a page may read of another origin: nothing.
    for path in ("api/csrf-token?client=page", "api/health"):
        assert "access-control-allow-origin" not in answer(services, "GET", path, headers=FOREIGN)[1]
    for host in ("127.0.0.1", "localhost"):
        own = {"Origin": f"http://{host}:{services.port}"}
        code, said = answer(services, "OPTIONS", run, headers=own | asks)
        assert (code, said["access-control-allow-origin"]) == (200, own["Origin"])


def test_another_user_of_this_machine_is_refused(services: Services) -> None:
    """No password, a wrong one, and a wrong one of the right form; for reading and for changing."""
    wrong = ["", "sparse-probing:", "admin:pass", services.server.password[:-1]]
    run = f"api/deployments/{services.deployment('study')['id']}/create_flow_run"
    for password in wrong:
        for method, path, body in (
            ("GET", "api/admin/version", None),
            ("GET", "api/admin/settings", None),
            ("GET", "api/csrf-token?client=other", None),
            ("POST", run, {}),
            ("POST", "api/deployments/filter", {}),
            ("DELETE", f"api/work_pools/{POOL}", None),
        ):
            headers = {"Content-Type": "application/json", "Prefect-Csrf-Client": "x", "Prefect-Csrf-Token": "x"}
            code, _ = answer(services, method, path, body, password=password, headers=headers)
            assert code in (401, 403), (method, path, password)


def test_the_password_is_told_to_nobody(services: Services) -> None:
    secret = services.server.password
    assert oct(password_file(services.settings).stat().st_mode)[-3:] == "600"
    assert oct((services.data / "services.json").stat().st_mode)[-3:] == "600"
    for log in (services.data / "logs").iterdir():
        assert secret not in log.read_text(), log
    assert secret not in services.said
    for name in ("server", *WORKERS):
        one = psutil.Process(read_state(services.settings)[name]["pid"])
        for found in (one, *one.children(recursive=True)):
            assert secret not in " ".join(found.cmdline())
    # The worker can talk to the server, and could start none of its own with that password.
    worker = psutil.Process(read_state(services.settings)["worker"]["pid"]).environ()
    assert worker["PREFECT_API_AUTH_STRING"] == secret
    assert "PREFECT_SERVER_API_AUTH_STRING" not in worker


def test_the_page_asks_for_the_password(services: Services) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{services.port}/ui-settings", timeout=60) as found:
        told = json.loads(found.read())
    assert told["auth"] == "BASIC"
    assert told["csrf_enabled"] is True


def test_a_run_with_the_password_cannot_run_a_command(services: Services, tiny_profile: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    deployment = services.deployment("study")
    parameters = {"profile": str(tiny_profile)}
    for variables in (
        {"command": f"touch {marker}"},
        {"working_dir": str(tmp_path)},
        {"env": {"PYTHONSTARTUP": str(marker)}},
        {"env.PYTHONSTARTUP": str(marker)},
    ):
        body = {"job_variables": variables, "parameters": parameters}
        code, _ = answer_with_token(services, f"api/deployments/{deployment['id']}/create_flow_run", body)
        assert code == 422, variables
    # This way the server looks at no job variables: the worker itself must leave them out.
    run = services.server.ask(
        "flow_runs/",
        {
            "flow_id": deployment["flow_id"],
            "deployment_id": deployment["id"],
            "parameters": parameters,
            "work_pool_name": POOL,
            "job_variables": {"command": f"touch {marker}", "working_dir": str(tmp_path), "env": {"BASH_ENV": "x"}},
            "state": {"type": "SCHEDULED"},
        },
    )
    assert services.wait_for(run["id"]) == "COMPLETED"
    assert not marker.exists()


def answer_with_token(services: Services, path: str, body: Any) -> tuple[int, dict[str, str]]:
    password = services.server.password
    headers = {"Content-Type": "application/json", **services.server._csrf_token()}
    return answer(services, "POST", path, body, password=password, headers=headers)


def test_up_again_leaves_what_runs_and_mends_what_is_open(
    services: Services, cli, tiny_profile: Path, tmp_path: Path
) -> None:
    server = services.server
    nightly = services.deployment("study-nightly")
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
    assert not nightly["schedules"][0]["active"]
    # A schedule that someone turned on, and a pool as an older version made it, with a limit of its owner's.
    schedule = f"deployments/{nightly['id']}/schedules/{nightly['schedules'][0]['id']}"
    server.ask(schedule, {"active": True}, method="PATCH")
    older = {"base_job_template": ProcessWorker.get_default_base_job_template(), "concurrency_limit": 3}
    server.ask(f"work_pools/{POOL}", older, method="PATCH")
    server.ask(f"deployments/{nightly['id']}", {"job_variables": {"env": {"TQDM_DISABLE": "1"}}}, method="PATCH")
    before = read_state(services.settings)
    twice = cli("up", "--port", str(services.port), data=services.data)
    assert twice.returncode == 0, twice.stderr
    assert read_state(services.settings) == before
    assert services.server.password == server.password
    after = services.deployment("study-nightly")
    assert [one["active"] for one in after["schedules"]] == [True]
    assert after["job_variables"] == {}
    pool = server.ask(f"work_pools/{POOL}")
    assert pool["concurrency_limit"] == 3
    assert "command" not in pool["base_job_template"]["job_configuration"]
    server.ask(f"work_pools/{POOL}", {"concurrency_limit": None}, method="PATCH")
    # The command line finds the server and its password by itself.
    profile = other_study(tiny_profile, tmp_path, 26)
    again = cli("study", "--profile", str(profile), data=services.data, server=False)
    assert again.returncode == 0, again.stderr
    assert f"127.0.0.1:{services.port}" in again.stdout


def test_a_nightly_run_that_finds_another_at_work_is_left_out(services: Services) -> None:
    nightly = services.deployment("study-nightly")
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_a_run_whose_process_is_gone_ends_as_crashed(
    services: Services, cli, tiny_profile: Path, tmp_path: Path
) -> None:
    server = services.server
    known = {"automations": {"name": {"any_": [AUTOMATION]}}}
    (made,) = server.ask("automations/filter", known)
    assert made["enabled"]
    assert made["trigger"]["posture"] == "Proactive"
    assert made["trigger"]["within"] == SILENT_SECONDS
    # The same one with the least patience that there is; a second `up` leaves it as its owner wants it.
    server.ask(f"automations/{made['id']}", automation(10.0), method="PUT")
    make_automations(server)
    (kept,) = server.ask("automations/filter", known)
    assert (kept["id"], kept["trigger"]["within"]) == (made["id"], 10.0)
    deployment = services.deployment("study")
    body = {"parameters": {"profile": str(other_study(tiny_profile, tmp_path, 28))}}
    run = server.ask(f"deployments/{deployment['id']}/create_flow_run", body)
    worker = psutil.Process(read_state(services.settings)["worker"]["pid"])
    signs = {"filter": {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run['id']}"]}}}
    deadline = time.monotonic() + 120
    while not server.ask("events/filter", signs)["total"]:
        if time.monotonic() > deadline:
            pytest.fail("it never came to that")
        time.sleep(0.2)
    for one in (*worker.children(recursive=True), worker):
        one.kill()
    assert services.wait_for(run["id"]) == "CRASHED"
    assert "No sign of life" in server.ask(f"flow_runs/{run['id']}")["state"]["message"]
    server.ask(f"automations/{made['id']}", automation(SILENT_SECONDS), method="PUT")
    again = cli("up", "--port", str(services.port), data=services.data)
    assert again.returncode == 0, again.stderr
    assert psutil.Process(read_state(services.settings)["worker"]["pid"]).is_running()


def test_a_worker_that_outlives_its_server_is_kept_or_stopped_and_never_lost(services: Services, cli) -> None:
    before = read_state(services.settings)
    worker = psutil.Process(before["worker"]["pid"])
    kill(before["server"]["pid"])
    # At the same address it serves on.
    again = cli("up", "--port", str(services.port), data=services.data)
    assert again.returncode == 0, again.stderr
    after = read_state(services.settings)
    assert after["worker"] == before["worker"], (
        again.stdout + (services.data / "logs" / "worker.log").read_text()[-3000:]
    )
    assert after["server"] != before["server"]
    assert worker.is_running()
    # At another address it would never find the server.
    kill(after["server"]["pid"])
    services.port = free_port()
    moved = cli("up", "--port", str(services.port), data=services.data)
    assert moved.returncode == 0, moved.stderr
    assert f"process {worker.pid}" in moved.stdout
    assert not worker.is_running()
    assert psutil.Process(read_state(services.settings)["worker"]["pid"]).is_running()


def test_a_server_that_lives_but_does_not_answer_is_not_forgotten(services: Services, cli) -> None:
    before = read_state(services.settings)
    stopped = psutil.Process(before["server"]["pid"])
    stopped.suspend()
    try:
        refused = cli("up", "--port", str(free_port()), data=services.data)
    finally:
        stopped.resume()
    assert refused.returncode == 2
    assert "sparse-probing down" in refused.stderr
    assert str(stopped.pid) in refused.stderr
    assert read_state(services.settings) == before


def kill(pid: int) -> None:
    """As a crash would."""
    found = psutil.Process(pid)
    found.kill()
    found.wait(60)


def test_a_server_that_is_away_for_a_while_fails_no_run(
    services: Services, cli, tiny_profile: Path, tmp_path: Path, prefect_environment: dict[str, str]
) -> None:
    """Killed in the middle of a worker's run and of a study on the command line, and started anew."""
    profile = other_study(tiny_profile, tmp_path, 32)
    # Long enough for both to be at work when the server goes.
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text.replace("n_permutations = 50", "n_permutations = 4000"), encoding="utf-8")
    mine, theirs = tmp_path / "data" / "datasets", services.data / "datasets"
    before = {path.name for path in theirs.glob("*")}
    body = {"parameters": {"profile": str(profile)}}
    run = services.server.ask(f"deployments/{services.deployment('study')['id']}/create_flow_run", body)
    wait_until(lambda: not {path.name for path in theirs.glob("*")} <= before)
    command = [sys.executable, "-m", "flows.cli", "--data", str(tmp_path / "data"), "study", "--profile", str(profile)]
    study = subprocess.Popen(
        command, cwd=ROOT, env=prefect_environment | services.server.environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: any(mine.glob("*")))
        kill(read_state(services.settings)["server"]["pid"])
        time.sleep(FIRST_WORD_SECONDS + 3 * ASK_SECONDS)
        again = cli("up", "--port", str(services.port), data=services.data)
        assert again.returncode == 0, again.stderr
        said, _ = study.communicate(timeout=600)
    finally:
        study.kill()
    assert study.returncode == 0, said
    assert "does not answer" in said
    assert "answers again" in said
    assert services.wait_for(run["id"]) == "COMPLETED"
