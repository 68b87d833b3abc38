"""Pairs that views set side by side get the interval that their predictions give, once, and lose it with their run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_probing.probes.uncertainty import difference_interval, r2_difference_interval
from sparse_probing.runs.comparing import intervals
from sparse_probing.store.predictions import pack, pack_groups
from sparse_probing.warehouse.comparing import compare
from sparse_probing.warehouse.loading import forget_runs
from sparse_probing.warehouse.working import open_usable
from tests.sql.rows import insert

N = 60
GROUPS = np.arange(N) // 3
TRUTH = np.arange(N) % 6 < 3
RNG = np.random.default_rng(0)
BEST = TRUTH ^ (RNG.random(N) < 0.05)
OTHER = TRUTH ^ (RNG.random(N) < 0.5)
SHUFFLED = np.roll(TRUTH, 3)
SPEC = '{"probing": {"n_bootstrap": 300}}'


def prediction(probe_id: str, predicted: np.ndarray, **others: Any) -> dict[str, Any]:
    return {"probe_id": probe_id, "predicted": pack(predicted)} | others


@pytest.fixture
def working(tmp_path: Path) -> Path:
    """A run with two shortlisted neurons, a probe and a baseline that was judged by shuffled labels."""
    path = tmp_path / "working.duckdb"
    con, _ = open_usable(path)
    insert(con, "runs", [{"spec": SPEC}])
    insert(con, "features", [{}])
    insert(con, "neuron_scores", [{"validation_mcc": 0.75}, {"neuron": 1, "validation_mcc": 0.25}])
    insert(
        con,
        "probe_fits",
        [
            {"fit_id": "f1", "validation_mcc": 0.75},
            {"fit_id": "f2", "variant": "shuffled_labels", "validation_mcc": 0.25},
        ],
    )
    insert(con, "test_labels", [{"n_rows": N, "truth": pack(TRUTH), "group_code": pack_groups(GROUPS)}])
    insert(
        con,
        "test_predictions",
        [
            prediction("0/0", BEST),
            prediction("0/1", OTHER),
            prediction("f1", BEST),
            prediction("f2", OTHER, truth=pack(SHUFFLED)),
        ],
    )
    con.close()
    return path


def rows(working: Path) -> list[tuple[Any, ...]]:
    con, _ = open_usable(working)
    try:
        return con.execute(
            "select probe_id, other_run_id, other_probe_id, difference_low, difference_high from comparisons order by all"
        ).fetchall()
    finally:
        con.close()


def test_pairs_get_the_interval_of_their_difference(working: Path) -> None:
    assert compare(working, intervals) == 2
    alone = [
        difference_interval(TRUTH, BEST, OTHER, GROUPS, n_bootstrap=300),
        difference_interval(TRUTH, BEST, OTHER, GROUPS, other_positive=SHUFFLED, n_bootstrap=300),
    ]
    (low, high), (shuffled_low, shuffled_high) = ((one[0][0], one[1][0]) for one in alone)
    assert rows(working) == [
        ("0/0", "r1", "0/1", pytest.approx(low), pytest.approx(high)),
        ("f1", "r1", "f2", pytest.approx(shuffled_low), pytest.approx(shuffled_high)),
    ]
    assert low > 0
    # Nothing is compared twice.
    assert compare(working, intervals) == 0


def test_checkpoints_are_compared_where_they_share_their_rows(working: Path) -> None:
    con, _ = open_usable(working)
    insert(con, "runs", [{"run_id": "r2", "revision": "step2", "spec": SPEC, "weights_digest": "other"}])
    insert(con, "features", [{"run_id": "r2"}])
    insert(con, "neuron_scores", [{"run_id": "r2", "neuron": 1}])
    insert(con, "test_predictions", [prediction("0/1", OTHER, run_id="r2")])
    con.execute("update runs set revision = 'step1' where run_id = 'r1'")
    con.execute(
        'update runs set spec = replace(spec, \'}}\', \'}, "model": {"id": "m", "revision": "\' || revision || \'"}}\')'
    )
    insert(
        con, "test_labels", [{"run_id": "r2", "n_rows": N, "truth": pack(~TRUTH), "group_code": pack_groups(GROUPS)}]
    )
    con.close()
    # Labels that differ are not the same rows.
    assert compare(working, intervals) == 2
    con, _ = open_usable(working)
    con.execute(
        "update test_labels set truth = (select truth from test_labels where run_id = 'r1') where run_id = 'r2'"
    )
    con.close()
    # The best neurons of both, and the later one with itself; the later run has no prediction of the earlier one.
    assert compare(working, intervals) == 2
    for place, (probe_id, earlier) in enumerate([("0/0", BEST), ("0/1", OTHER)], 1):
        low, high = difference_interval(TRUTH, OTHER, earlier, GROUPS, n_bootstrap=300)
        assert rows(working)[place] == ("0/1", "r1", probe_id, pytest.approx(low[0]), pytest.approx(high[0]))
    forget_runs(working, ["r1"])
    assert rows(working) == []


def test_real_valued_targets_are_compared_by_r2(working: Path) -> None:
    target = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    close, far = target + np.float32(0.25), target * np.float32(-1)
    con, _ = open_usable(working)
    con.execute("delete from neuron_scores")
    con.execute("delete from test_predictions")
    con.execute("update features set task = 'regression'")
    con.execute("update probe_fits set validation_r2 = validation_mcc, validation_mcc = null")
    con.execute("update test_labels set truth = ?", [pack(target)])
    insert(con, "test_predictions", [prediction("f1", close), prediction("f2", far)])
    con.close()
    assert compare(working, intervals) == 1
    expected = r2_difference_interval(target, close, far, GROUPS, n_bootstrap=300)
    assert rows(working) == [("f1", "r1", "f2", pytest.approx(expected[0]), pytest.approx(expected[1]))]


def test_no_draws_and_no_predictions_mean_no_comparison(working: Path) -> None:
    con, _ = open_usable(working)
    con.execute("delete from test_predictions where probe_id = 'f2'")
    con.close()
    assert compare(working, intervals) == 1
    con, _ = open_usable(working)
    con.execute("delete from comparisons")
    con.execute("update runs set spec = replace(spec, '300', '0')")
    con.close()
    assert compare(working, intervals) == 0
