"""Every 3xx view on rows with a known answer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np

from tests.sql.rows import database, insert


def three_checkpoints() -> duckdb.DuckDBPyConnection:
    """Steps 512, 1000 and main of one series; runs of other data and of chosen neurons belong to none."""
    runs: list[dict[str, Any]] = [
        {"run_id": "c", "revision": "main", "created_at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"run_id": "b", "revision": "step1000", "created_at": datetime(2026, 1, 2, tzinfo=UTC)},
        {"run_id": "a", "revision": "step512", "created_at": datetime(2026, 1, 3, tzinfo=UTC)},
        {"run_id": "x", "revision": "step2000", "dataset_digest": "another"},
        {"run_id": "y", "revision": "step3000", "spec": '{"extraction": {"neurons": [[0, 0]]}}'},
    ]
    place = {"layer": 0, "neuron": 0}
    scores: list[dict[str, Any]] = [
        {
            **place,
            "run_id": "a",
            "validation_mcc": 0.25,
            "test_mcc": 0.25,
            "test_mcc_low": 0.125,
            "test_mcc_high": 0.375,
        },
        {**place, "run_id": "b", "validation_mcc": 0.75, "test_mcc": 0.75, "test_mcc_low": 0.5, "test_mcc_high": 0.875},
        {**place, "run_id": "c", "validation_mcc": 0.5, "test_mcc": 0.5, "shortlisted": False},
        {
            "layer": 1,
            "neuron": 1,
            "run_id": "c",
            "validation_mcc": 0.875,
            "test_mcc": 0.75,
            "test_mcc_low": 0.625,
            "test_mcc_high": 0.875,
        },
        {**place, "run_id": "x"},
        {**place, "run_id": "y"},
    ]
    return database(runs=runs, features=[{"run_id": run["run_id"]} for run in runs], neuron_scores=scores)


def test_trajectories_follow_the_training_steps() -> None:
    found = (
        three_checkpoints()
        .execute(
            "select position_in_series, revision, training_step, layer, neuron, test_mcc "
            "from checkpoint_trajectories order by series_id, position_in_series"
        )
        .fetchall()
    )
    assert found == [
        (1, "step512", 512, 0, 0, 0.25),
        (2, "step1000", 1000, 0, 0, 0.75),
        (3, "main", None, 1, 1, 0.75),
    ]


def test_changes_compare_neighbours() -> None:
    con = three_checkpoints()
    insert(
        con,
        "comparisons",
        [{"run_id": "b", "probe_id": "0/0", "other_run_id": "a", "other_probe_id": "0/0", "difference_low": 0.125}],
    )
    insert(con, "comparisons", [{"run_id": "c", "probe_id": "1/1", "other_run_id": "b", "other_probe_id": "0/0"}])
    found = con.execute(
        "select earlier_revision, later_revision, same_neuron, earlier_neuron_validation_mcc, test_mcc_change, "
        "difference_low, changed from checkpoint_changes order by position_in_series"
    ).fetchall()
    assert found == [
        ("step512", "step1000", True, 0.75, 0.5, 0.125, True),
        ("step1000", "main", False, 0.5, 0.0, -0.25, False),
    ]


def test_what_is_compared_is_what_the_views_set_side_by_side() -> None:
    con = three_checkpoints()
    insert(con, "neuron_scores", [{"run_id": "a", "layer": 1, "neuron": 5, "validation_mcc": 0.125}])
    fits = [("f1", "real", 0.5), ("f2", "real", 0.75), ("f3", "shuffled_labels", 0.25), ("f4", "dense", 0.875)]
    insert(
        con,
        "probe_fits",
        [{"run_id": "a", "fit_id": f, "variant": v, "validation_mcc": q, "train_mcc": q} for f, v, q in fits],
    )
    found = con.execute(
        "select run_id, metric, probe_id, other_run_id, other_probe_id from pairs_to_compare order by all"
    ).fetchall()
    assert found == [
        ("a", "mcc", "0/0", "a", "1/5"),
        ("a", "mcc", "f2", "a", "f3"),
        ("a", "mcc", "f2", "a", "f4"),
        ("b", "mcc", "0/0", "a", "0/0"),
        ("b", "mcc", "1/1", "a", "1/1"),
        ("c", "mcc", "0/0", "b", "0/0"),
        ("c", "mcc", "1/1", "b", "0/0"),
        ("c", "mcc", "1/1", "b", "1/1"),
    ]


def test_the_same_neurons_are_followed_through_all_checkpoints() -> None:
    con = three_checkpoints()
    scores: list[dict[str, Any]] = [
        {"run_id": "a", "validation_mcc": 0.125, "coef": -2.0, "intercept": 1.0, "shortlisted": False},
        {"run_id": "b", "validation_mcc": 0.625, "test_mcc_low": 0.5, "coef": 2.0, "intercept": 1.0},
        {"run_id": "x"},
    ]
    insert(con, "neuron_scores", [{"layer": 1, "neuron": 1, "test_mcc": float("nan"), **score} for score in scores])
    insert(con, "neuron_scores", [{"run_id": run_id, "layer": 1, "neuron": 0} for run_id in "xy"])
    insert(
        con,
        "comparisons",
        [
            {"run_id": "b", "probe_id": "0/0", "other_run_id": "a", "other_probe_id": "0/0", "difference_low": 0.125},
            {"run_id": "c", "probe_id": "1/1", "other_run_id": "b", "other_probe_id": "1/1"},
            # The best neurons of neighbours: not of one neuron.
            {"run_id": "c", "probe_id": "1/1", "other_run_id": "b", "other_probe_id": "0/0", "difference_low": 0.125},
        ],
    )
    found = con.execute(
        "select layer, neuron, position_in_series, training_step, is_best, rank, direction, threshold, validation_mcc, "
        "test_mcc, test_mcc_low, difference_low, changed from checkpoint_neurons order by layer, position_in_series"
    ).fetchall()
    assert found == [
        (0, 0, 1, 512, True, 1, 1, -1.0, 0.25, 0.25, 0.125, None, None),
        (0, 0, 2, 1000, True, 1, 1, -1.0, 0.75, 0.75, 0.5, 0.125, True),
        (0, 0, 3, None, False, None, 1, -1.0, 0.5, 0.5, 0.0, None, None),
        (1, 1, 1, 512, False, None, -1, 0.5, 0.125, None, 0.0, None, None),
        (1, 1, 2, 1000, False, 2, 1, -0.5, 0.625, None, 0.5, None, None),
        (1, 1, 3, None, True, 1, 1, -1.0, 0.875, 0.75, 0.625, -0.25, False),
    ]


def test_every_followed_neuron_is_at_every_position_and_one_is_the_best_there() -> None:
    """Three series of up to six checkpoints and three features, random scores: which neurons are best is left to chance."""
    rng = np.random.default_rng(0)
    runs: list[dict[str, Any]] = [
        {"run_id": f"{model}{step}", "model": model, "revision": f"step{step}"}
        for model, n_steps in (("m", 6), ("n", 2), ("o", 1))
        for step in range(n_steps)
    ]
    features = ("digit", "space", "word")
    scores = [
        {"run_id": run["run_id"], "feature": feature, "layer": layer, "neuron": neuron, "shortlisted": neuron < 2}
        | {"validation_mcc": float(rng.choice([0.25, 0.5, 0.75])), "test_mcc": float(rng.random())}
        for run in runs
        for feature in features
        for layer in (0, 1)
        for neuron in range(3)
    ]
    con = database(
        runs=runs,
        features=[{"run_id": run["run_id"], "feature": feature} for run in runs for feature in features],
        neuron_scores=scores,
    )
    assert con.execute(
        "select model, count(distinct feature), count(distinct position_in_series) from checkpoint_neurons "
        "group by model order by model"
    ).fetchall() == [("m", 3, 6), ("n", 3, 2)]
    apart = con.execute(
        "select n from (select count(*) as n, count(distinct position_in_series) as n_positions, min(position_in_series) "
        "as first, max(position_in_series) as last, any_value(model) as model from checkpoint_neurons "
        "group by series_id, feature, layer, neuron) "
        "where n <> n_positions or first <> 1 or last <> case model when 'm' then 6 else 2 end"
    ).fetchall()
    assert apart == []
    best = "select series_id, feature, position_in_series, run_id, layer, neuron, test_mcc, direction, threshold from "
    assert con.execute(f"{best} checkpoint_neurons where is_best order by all").fetchall() == (
        con.execute(f"{best} checkpoint_trajectories order by all").fetchall()
    )
    ranks = "select run_id, feature, layer, neuron, rank from "
    assert (
        con.execute(f"({ranks} checkpoint_neurons where rank is not null) except {ranks} neuron_rankings").fetchall()
        == []
    )
    # Each pair is listed once, and every step of a followed neuron is.
    pairs = con.execute("select * from pairs_to_compare where run_id <> other_run_id").fetchall()
    assert len(pairs) == len(set(pairs))
    steps = con.execute(
        "select later.run_id, later.feature, 'mcc', format('{}/{}', layer, neuron), earlier.run_id, "
        "format('{}/{}', layer, neuron) from checkpoint_neurons as later inner join checkpoint_neurons as earlier "
        "using (series_id, feature, layer, neuron) where later.position_in_series = earlier.position_in_series + 1"
    ).fetchall()
    assert set(steps) <= set(pairs)


def test_a_probe_is_better_than_a_baseline_where_the_whole_interval_says_so() -> None:
    con = three_checkpoints()
    fits = [
        ("f2", "real", 0.75),
        ("f3", "shuffled_labels", 0.25),
        ("f4", "random_rotation", 0.5),
        ("f5", "prevalence", 0.0),
    ]
    insert(
        con,
        "probe_fits",
        [{"run_id": "a", "fit_id": f, "variant": v, "validation_mcc": q, "test_mcc": q} for f, v, q in fits],
    )
    pair = {"run_id": "a", "other_run_id": "a", "probe_id": "f2"}
    insert(con, "comparisons", [pair | {"other_probe_id": "f3", "difference_low": 0.125}])
    insert(con, "comparisons", [pair | {"other_probe_id": "f4", "difference_low": -0.125}])
    found = con.execute("select variant, difference_low, probe_is_better from baselines order by variant").fetchall()
    assert found == [
        ("prevalence", None, None),
        ("random_rotation", -0.125, False),
        ("real", None, None),
        ("shuffled_labels", 0.125, True),
    ]
    found = con.execute("select subject from check_baselines order by subject").fetchall()
    assert found == [("digit: random_rotation",)]


def test_a_series_is_of_one_model_id_and_its_overwritten_folder_has_two_members() -> None:
    def run(run_id: str, folder: str, digest: str, day: int) -> dict[str, Any]:
        spec = f'{{"model": {{"id": "{folder}/final"}}}}'
        created = datetime(2026, 1, day, tzinfo=UTC)
        return {"run_id": run_id, "model": "final", "revision": "local", "spec": spec} | {
            "weights_digest": digest,
            "created_at": created,
        }

    runs = [run("r1", "a", "1111111111", 2), run("r2", "a", "2222222222", 1), run("r3", "b", "3333333333", 3)]
    con = database(
        runs=runs,
        features=[{"run_id": one["run_id"]} for one in runs],
        neuron_scores=[{"run_id": one["run_id"]} for one in runs],
    )
    found = con.execute(
        "select model, revision, run_id from checkpoint_trajectories order by position_in_series"
    ).fetchall()
    assert found == [("a/final", "local+22222222", "r2"), ("a/final", "local+11111111", "r1")]


def test_the_training_step_is_of_the_revision_asked_for_and_not_of_a_commit_or_version() -> None:
    asked = [("0a1b99", "step1000"), ("ffff07", "step512"), ("0.1.2", "main")]
    runs = [
        {"run_id": f"r{i}", "revision": found, "spec": f'{{"model": {{"id": "hub/tiny", "revision": "{name}"}}}}'}
        for i, (found, name) in enumerate(asked)
    ]
    con = database(
        runs=runs,
        features=[{"run_id": run["run_id"]} for run in runs],
        neuron_scores=[{"run_id": run["run_id"]} for run in runs],
    )
    found = con.execute(
        "select revision, training_step from checkpoint_trajectories order by position_in_series"
    ).fetchall()
    assert found == [("ffff07", 512), ("0a1b99", 1000), ("0.1.2", None)]
