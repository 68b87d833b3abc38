"""The whole pipeline on a tiny model: it runs, it resumes after kill -9 to the same numbers, and it never blocks a query."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cli, tiny_profile: Path) -> Path:
    data = tmp_path_factory.mktemp("finished")
    done = cli("study", "--profile", str(tiny_profile), data=data)
    assert done.returncode == 0, done.stdout + done.stderr
    return data


def test_every_neuron_of_every_layer_is_scored(finished: Path) -> None:
    with duckdb.connect(str(finished / "results.duckdb"), read_only=True) as connection:
        counts = connection.execute(
            "select feature, count(*), count(distinct (layer, neuron)) from neuron_scores group by feature"
        ).fetchall()
        assert len(counts) >= 20
        assert {(n, distinct) for _, n, distinct in counts} == {(3 * 64, 3 * 64)}
        best = connection.execute("select feature, layer, neuron, test_mcc from best_neuron_per_feature").fetchall()
        assert len(best) == len(counts)


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
    assert "<svg" in page or "<table" in page
    refused = cli("sql", "drop table runs", data=finished)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_reference_split_is_applied(tmp_path: Path, cli, tiny_profile: Path) -> None:
    profile = tmp_path / "reference.toml"
    profile.write_text(
        tiny_profile.read_text().replace("[probing]", '[probing]\nsplit = "reference"'), encoding="utf-8"
    )
    done = cli("study", "--profile", str(profile), data=tmp_path / "data")
    assert done.returncode == 0, done.stdout + done.stderr
    with duckdb.connect(str(tmp_path / "data" / "results.duckdb"), read_only=True) as connection:
        rows = connection.execute(
            "select collection, split_mode, sum(n_shared_groups), sum(n_test), sum(n_train + n_validation + n_test) "
            "from features join runs using (run_id) group by all"
        ).fetchall()
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
    for _ in range(4):
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
    finished: Path, cli, tiny_profile: Path, tmp_path: Path, prefect_environment: dict[str, str]
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(tiny_profile.read_text().replace("n_bootstrap = 50", "n_bootstrap = 40"), encoding="utf-8")
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "--data", str(finished), "study", "--profile", str(other)],
        cwd=ROOT,
        env=prefect_environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
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
        _, errors = child.communicate(timeout=900)
    assert child.returncode == 0, errors
    assert answered >= 100
    assert len(seen) == 2, "the queries ran across the publication: before it and after it"
