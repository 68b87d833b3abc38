"""The whole pipeline on a tiny model: it runs, it resumes after kill -9 to the same numbers, and it never blocks a query."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import duckdb
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.history import STAGES, study_runs
from flows.server_api import Server
from sparse_probing import schemas

ROOT = Path(__file__).parents[2]
STABLE = {
    name: [field.name for field in schema if field.name not in schemas.VOLATILE_COLUMNS]
    for name, schema in schemas.TABLES.items()
}


def contents(data: Path) -> dict[str, list[tuple]]:
    with duckdb.connect(str(data / "results.duckdb"), read_only=True) as connection:
        return {
            name: connection.execute(f"select {', '.join(columns)} from {name} order by all").fetchall()
            for name, columns in STABLE.items()
        }


@dataclass(frozen=True)
class Finished:
    """A study that ended well: where, what its terminal showed, and its flow runs at the server."""

    data: Path
    stdout: str
    stderr: str
    flow_runs: tuple[FlowRun, ...]

    @property
    def flow_run_ids(self) -> list[UUID]:
        return [run.id for run in self.flow_runs]


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory, cli, tiny_profile: Path, prefect_server: str) -> Finished:
    data = tmp_path_factory.mktemp("finished")
    before = {run.id for run in flow_runs(prefect_server)}
    done = cli("study", "--profile", str(tiny_profile), data=data)
    assert done.returncode == 0, done.stdout + done.stderr
    made = tuple(run for run in flow_runs(prefect_server) if run.id not in before)
    return Finished(data, done.stdout, done.stderr, made)


def flow_runs(api_url: str) -> list[FlowRun]:
    with SyncPrefectClient(api=api_url) as client:
        return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=50)


@pytest.fixture(scope="module")
def finished(finished_study: Finished) -> Path:
    return finished_study.data


def test_no_task_is_tried_twice(finished_study: Finished, prefect_server: str) -> None:
    assert {run.state_name for run in finished_study.flow_runs} == {"Completed"}
    of_study = FlowRunFilter(id=FlowRunFilterId(any_=finished_study.flow_run_ids))
    deadline = time.monotonic() + 120
    with SyncPrefectClient(api=prefect_server) as client:
        # The server takes in what tasks report by and by.
        while True:
            runs = client.read_task_runs(flow_run_filter=of_study, limit=200)
            if any(run.name.startswith("raise-failed-checks") for run in runs) and all(
                run.state_type == StateType.COMPLETED for run in runs
            ):
                break
            if time.monotonic() > deadline:
                pytest.fail(str([(run.name, run.state_name) for run in runs]))
            time.sleep(0.5)
    assert sum(run.name.startswith("build ") for run in runs) == 2
    assert {run.name: run.run_count for run in runs if run.run_count != 1} == {}
    retries = {
        "event": {"name": ["prefect.task-run.AwaitingRetry"]},
        "related": {"id": [f"prefect.flow-run.{run_id}" for run_id in finished_study.flow_run_ids]},
    }
    assert Server(prefect_server).ask("events/filter", {"filter": retries})["events"] == []


def test_the_page_shows_progress_by_step_study_and_model(finished_study: Finished, prefect_server: str) -> None:
    wanted = {"flow_runs": {"id": {"any_": [str(run_id) for run_id in finished_study.flow_run_ids]}}}
    found = Server(prefect_server).ask("artifacts/filter", wanted)
    progress = {one["key"]: float(one["data"]) for one in found if one["type"] == "progress"}
    collections = ("natural-lang-id", "text-features")
    assert {f"{step}-{one}-tiny-tiny-neox" for step in ("build", "extract") for one in collections} <= set(progress)
    assert set(progress.values()) == {100.0}


def test_a_study_is_listed_with_the_time_of_each_stage(finished_study: Finished, prefect_server: str) -> None:
    (root,) = (run for run in finished_study.flow_runs if run.parent_task_run_id is None)
    began = root.start_time.strftime("%Y-%m-%d %H:%M:%S")
    listed = study_runs(Server(prefect_server), limit=1000)
    (row,) = (row for row in listed if (row["run"], row["started_at"]) == (root.name, began))
    assert (row["run"], row["state"], row["parts"], row["message"]) == ("study tiny: tiny-neox", "Completed", 0, "")
    inside = {run.name.split()[0]: run.total_run_time.total_seconds() for run in finished_study.flow_runs}
    assert set(inside) == {"study", *STAGES}
    assert row["seconds"] == pytest.approx(inside["study"], abs=0.06)
    for stage in STAGES:
        assert row[f"{stage}_seconds"] == pytest.approx(inside[stage], abs=0.06)
    assert study_runs(Server(prefect_server), limit=1) == listed[:1]


def test_runs_log_what_they_did_and_the_terminal_does_not(finished_study: Finished, prefect_server: str) -> None:
    log_filter = LogFilter(flow_run_id=LogFilterFlowRunId(any_=finished_study.flow_run_ids))
    with SyncPrefectClient(api=prefect_server) as client:
        logs = client.read_logs(log_filter, limit=200)
    assert {log.level for log in logs} == {logging.INFO}
    text = "\n".join(log.message for log in logs)
    names = "model tiny-neox, revision local, collection natural_lang_id, hook mlp.hook_post"
    for pattern in (
        r"^Study tiny: models 1, collections 2",
        r"^Model found: model tiny-neox, revision local.* seconds [\d.]+$",
        r"^Dataset: model tiny-neox, collection text_features.* tokens [\d,]+, rows [\d,]+.* bytes [\d,]+, seconds [\d.]+$",
        r"^Dataset checked: collection text_features, checks \d+, failed 0",
        rf"^Activations: {names}, layers 0–2, neurons 64, rows 216, tokens [\d,]+, bytes [\d,]+, seconds [\d.]+$",
        rf"^Layer probed: {names}, run \w+, layer 2, rows 216, neurons 64.* bytes [\d,]+, seconds [\d.]+$",
        rf"^Best layer compared: {names}, run \w+, layer \d, features \d",
        rf"^Run is finished: {names}, run \w+, scores 1,728",
        r"^Results loaded: runs 2, new fragments \d+",
        r"^Results checked: runs 2, checks \d+",
        r"^Published: database .*results.duckdb, bytes [\d,]+",
        r"^Report written: ",
        r"^Study tiny is done: runs 2, seconds [\d.]+$",
    ):
        assert re.search(pattern, text, re.MULTILINE), (pattern, text)
    # Every flow says something; lines of tasks stand with their task.
    assert {log.flow_run_id for log in logs} == set(finished_study.flow_run_ids)
    assert all(log.task_run_id for log in logs if log.message.startswith("Layer probed"))
    assert finished_study.stderr == ""
    for word in ("Layer probed", "Finished in state", "Beginning", "INFO"):
        assert word not in finished_study.stdout


def test_a_failure_that_others_wait_for_is_one_line_that_names_the_cause(
    finished: Path, tmp_path: Path, cli, tiny_profile: Path
) -> None:
    """A file lies where a layer's results belong: that layer fails, and what comes after it waits in vain."""
    data = tmp_path / "data"
    for room in ("datasets", "activations", "models", "choices"):
        if (finished / room).exists():
            shutil.copytree(finished / room, data / room)
    in_the_way = [
        data / "results" / "_running" / run.name / "layer-01" for run in (finished / "results" / "runs").iterdir()
    ]
    assert len(in_the_way) == 2
    for path in in_the_way:
        path.parent.mkdir(parents=True)
        path.write_text("no folder")
    done = cli("study", "--profile", str(tiny_profile), data=data)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("sparse-probing: Cannot write ")
    assert any(f"{path}/" in line for path in in_the_way)
    for word in ("Unfinished", "PENDING", "Traceback"):
        assert word not in done.stdout + done.stderr
    assert "Cannot write" not in done.stdout


def test_every_neuron_of_every_layer_is_scored(finished: Path) -> None:
    with duckdb.connect(str(finished / "results.duckdb"), read_only=True) as connection:
        counts = connection.execute(
            "select feature, count(*), count(distinct (layer, neuron)) from neuron_scores group by feature"
        ).fetchall()
        assert len(counts) >= 20
        assert {(n, distinct) for _, n, distinct in counts} == {(3 * 64, 3 * 64)}
        best = connection.execute("select feature, layer, neuron, test_mcc from best_neuron_per_feature").fetchall()
        assert len(best) == len(counts)


def test_every_claim_carries_what_it_rests_on(finished: Path) -> None:
    def one(query: str) -> tuple:
        with duckdb.connect(str(finished / "results.duckdb"), read_only=True) as connection:
            return connection.execute(query).fetchall()[0]

    for table, score in (
        ("neuron_scores", "validation_mcc"),
        ("neuron_scores", "test_mcc"),
        ("probe_fits", "test_mcc"),
    ):
        n_intervals, n_narrow = one(
            f"select count({score}_low), count_if({score}_high <= {score}_low) from {table} where {score} is not null"
        )
        assert n_intervals > 100
        assert n_narrow == 0
    # Every shortlisted neuron but the first, every baseline of every feature, is compared.
    assert one("select count_if((difference_low is null) <> (rank = 1)), count(*) > 100 from neuron_rankings") == (
        0,
        True,
    )
    assert one("select count_if((probe_is_better is null) <> (variant = 'real')), count(*) > 50 from baselines") == (
        0,
        True,
    )
    assert one("select count_if(difference_low >= difference_high), count(*) > 100 from comparisons") == (0, True)
    assert one("select count_if(direction not in (-1, 1)), count(*) > 10 from best_neuron_per_feature") == (0, True)
    # Costly probes are fitted where the best neuron is.
    assert one(
        "select count_if(fits.layer <> best.layer), count(*) >= 20 from probe_fits as fits "
        "inner join best_neuron_per_feature as best on fits.run_id = best.run_id and fits.feature = best.feature "
        "where fits.method = 'dense_probe'"
    ) == (0, True)


def test_a_second_run_computes_nothing(finished: Path, cli, tiny_profile: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.parquet")}
    expected = contents(finished)
    done = cli("study", "--profile", str(tiny_profile), data=finished)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.parquet")} == before
    assert contents(finished) == expected


def test_commands_on_the_results(finished: Path, cli) -> None:
    query = "select feature, layer, neuron, test_mcc from best_neuron_per_feature order by test_mcc desc"
    done = cli("sql", query, "--format", "csv", data=finished)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "feature,layer,neuron,test_mcc"
    assert cli("check", data=finished).returncode == 0
    assert cli("report", data=finished).returncode == 0
    page = (finished / "reports" / "index.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "<table" in page
    refused = cli("sql", "drop table runs", data=finished)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_reference_split_is_applied_and_certificates_are_audited(tmp_path: Path, cli, tiny_profile: Path) -> None:
    profile = tmp_path / "reference.toml"
    asked = (
        '[probing]\nsplit = "reference"\nbest_layer_methods = ["optimal_sparse_probing"]\naudited_certificates = "all"'
    )
    profile.write_text(tiny_profile.read_text().replace("[probing]", asked), encoding="utf-8")
    done = cli("study", "--profile", str(profile), data=tmp_path / "data")
    assert done.returncode == 0, done.stdout + done.stderr
    with duckdb.connect(str(tmp_path / "data" / "results.duckdb"), read_only=True) as connection:
        rows = connection.execute(
            "select collection, split_mode, sum(n_shared_groups), sum(n_test), sum(n_train + n_validation + n_test) "
            "from features join runs using (run_id) group by all"
        ).fetchall()
        certificates = connection.execute(
            "select count_if(n_candidates <> n_neurons or ridge is null or unit_standard_deviations is null), "
            "count_if(audited_by is null or audit_gap > gap + 1e-5), count(*), count(distinct feature) * 3 "
            "from optimal_certificates"
        ).fetchall()[0]
    # Over every neuron of the layer, at a scale that they name, and found again by another solver.
    assert certificates[:2] == (0, 0)
    assert certificates[2] == certificates[3] > 50
    assert {mode for _, mode, *_ in rows} == {"reference"}
    # Tokens of one document fall on both sides, which a group split never allows.
    assert next(shared for name, _, shared, *_ in rows if name == "text_features") > 0
    for _, _, _, n_test, n_all in rows:
        assert abs(n_test / n_all - 0.3) < 0.05


def test_targets_that_are_numbers_have_probes_and_baselines(tmp_path: Path, cli, tiny_profile: Path) -> None:
    profile = tmp_path / "position.toml"
    head = tiny_profile.read_text(encoding="utf-8").split("[[collections]]")[0]
    profile.write_text(
        head + '[[collections]]\ncollection = "position"\ncontext_length = 48\noptions = { max_rows = 600 }\n',
        encoding="utf-8",
    )
    done = cli("study", "--profile", str(profile), data=tmp_path / "data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Best sparse probe of each target" in done.stdout
    assert "Best neuron of each feature" not in done.stdout
    assert "great_expectations" not in done.stdout + done.stderr
    assert cli("check", data=tmp_path / "data").returncode == 0
    with duckdb.connect(str(tmp_path / "data" / "results.duckdb"), read_only=True) as connection:
        assert connection.execute("select distinct task, n_train_positive from features").fetchall() == [
            ("regression", 0)
        ]
        best = {
            (feature, variant): (k, test, low, high)
            for feature, variant, k, test, low, high in connection.execute(
                "select feature, variant, k, test_r2, test_r2_low, test_r2_high from baselines where metric = 'r2'"
            ).fetchall()
        }
        methods = {row[0] for row in connection.execute("select distinct method from feature_sparsity").fetchall()}
    features = {feature for feature, _ in best}
    assert len(features) == 5
    assert methods == {"heuristic_sparse_regression_sweep"}
    # A random model with rotary positions tells positions apart only a little; the variants must all be there.
    for feature in features:
        for variant in ("real", "dense", "prevalence", "shuffled_labels", "random_rotation", "token_identity"):
            _, score, low, high = best[feature, variant]
            assert score is not None
            assert low <= score <= high or abs(score) < 0.2
        assert best[feature, "prevalence"][1] <= 1e-9


@pytest.mark.slow
def test_kill_at_any_moment_then_the_same_tables(
    finished: Path, tmp_path: Path, cli, tiny_profile: Path, prefect_environment: dict[str, str]
) -> None:
    data = tmp_path / "killed"
    moments = random.Random(7)
    command = [sys.executable, "-m", "flows.cli", "--data", str(data), "study", "--profile", str(tiny_profile)]
    killed = 0
    for _ in range(2):
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=prefect_environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Let it come as far as writing something, then strike at a random moment of the work.
        deadline = time.monotonic() + 900
        known = set(data.rglob("*.parquet")) if data.exists() else set()
        while child.poll() is None and time.monotonic() < deadline:
            if data.exists() and set(data.rglob("*.parquet")) - known:
                break
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 1.0))
        if child.poll() is None:
            # Its ephemeral API server at the same moment, as when a machine goes down.
            os.killpg(child.pid, signal.SIGKILL)
            killed += 1
        child.wait()
    assert killed, "the study ended before it could be killed once"
    done = cli("study", "--profile", str(tiny_profile), data=data)
    assert done.returncode == 0, done.stderr
    assert contents(data) == contents(finished)
    leftovers = [path for path in data.rglob("*") if path.name.startswith((".tmp-", "_running", "_shards", "_staging"))]
    assert [path for path in leftovers if path.is_dir() and any(path.iterdir())] == []


@pytest.mark.slow
def test_a_hundred_queries_while_a_study_runs(
    finished: Path,
    cli,
    tiny_profile: Path,
    tmp_path: Path,
    prefect_environment: dict[str, str],
    prefect_server: str,
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(tiny_profile.read_text().replace("n_bootstrap = 50", "n_bootstrap = 40"), encoding="utf-8")
    # To a file: nobody reads a pipe while the queries run.
    errors = tmp_path / "errors.txt"
    stream = errors.open("w")
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "--data", str(finished), "study", "--profile", str(other)],
        cwd=ROOT,
        env=prefect_environment | {"PREFECT_API_URL": prefect_server},
        stdout=subprocess.DEVNULL,
        stderr=stream,
    )
    answered = 0
    seen: set[int] = set()
    try:
        while child.poll() is None or answered < 100:
            with duckdb.connect(str(finished / "results.duckdb"), read_only=True) as connection:
                seen.add(connection.execute("select count(*) from best_neuron_per_feature").fetchall()[0][0])
            answered += 1
            time.sleep(0.05)
    finally:
        child.wait(timeout=900)
        stream.close()
    assert child.returncode == 0, errors.read_text()
    assert answered >= 100
    assert len(seen) == 2, "the queries ran across the publication: before it and after it"
