"""Great Expectations over check views, entering frames and datasets: real suites on real frames."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas as pd
import pytest

from sparse_probing.errors import InputError
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import catalog, checks
from sparse_probing.warehouse.checks import CheckResult, check_dataset, failed_errors, run_checks
from sparse_probing.warehouse.loading import load_results
from tests.sql.rows import write_fragment, write_run


@pytest.fixture
def working(tmp_path: Path) -> Path:
    """Runs good (clean), bad (errors and a warning) and empty (nothing but its row)."""
    root = Location.open(tmp_path)
    write_run(root, "good")
    write_run(root, "bad")
    write_fragment(root, "features", "bad", [{"n_shared_groups": 2, "n_test_positive": 5, "n_test_groups_positive": 5}])
    for kind in ("features", "neuron_scores", "probe_fits", "probe_supports"):
        write_fragment(root, kind, "empty", [])
    write_fragment(root, "runs", "empty", [{"n_rows": 0, "split_mode": "coin"}])
    path = tmp_path / "working.duckdb"
    load_results(path, root)
    return path


def failures(results: list[CheckResult], run_id: str) -> dict[str, CheckResult]:
    return {result.check_name: result for result in results if result.run_id == run_id and not result.passed}


def test_every_check_has_a_result_for_every_run(working: Path) -> None:
    results = run_checks(working, ["bad", "good", "empty"], Location.open(working.parent))
    names = {view.name for view in catalog.check_views()}
    for run_id in ("bad", "good", "empty"):
        assert names <= {result.check_name for result in results if result.run_id == run_id}
    assert [result.run_id for result in results] == sorted(
        (result.run_id for result in results), key=["bad", "good", "empty"].index
    )
    assert failures(results, "good") == {}


def test_violations_are_counted_and_the_first_is_told(working: Path) -> None:
    found = failures(run_checks(working, ["good", "bad", "empty"], Location.open(working.parent)), "bad")
    shared = found["check_shared_groups"]
    assert (shared.severity, shared.n_violations) == ("error", 1)
    assert shared.detail == "digit: found 2 groups in more than one split; expected 0"
    assert found["check_small_classes"].severity == "warning"
    assert set(found) == {"check_shared_groups", "check_small_classes"}
    assert [result.check_name for result in failed_errors(found.values())] == ["check_shared_groups"]


def test_frames_that_enter_are_checked_and_emptiness_does_not_pass(working: Path) -> None:
    found = failures(run_checks(working, ["good", "empty", "unknown"], Location.open(working.parent)), "empty")
    assert {"runs_have_rows", "runs_split_mode_known", "features_not_empty", "check_empty_runs"} <= set(found)
    assert found["runs_split_mode_known"].detail == "row 0: found 'coin'"
    unknown = failures(run_checks(working, ["good", "unknown"], Location.open(working.parent)), "unknown")
    assert unknown["runs_not_empty"].detail == "the run has no rows"


def test_results_are_written_and_replaced(working: Path) -> None:
    for _ in range(2):
        results = run_checks(working, ["good", "bad"], Location.open(working.parent))
    with duckdb.connect(str(working), read_only=True) as con:
        rows = con.execute("select count(*), count(distinct (run_id, name)) from validation_checks").fetchall()
        failed = con.execute("select run_id, name, violations from validation_checks where not passed").fetchall()
    assert rows == [(len(results),) * 2]
    assert sorted(failed) == [("bad", "check_shared_groups", 1), ("bad", "check_small_classes", 1)]


def test_a_check_that_cannot_be_executed_fails(working: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = catalog.CheckView("check_nowhere", "warning", "one row per nothing", "to fail")
    monkeypatch.setattr(checks.catalog, "check_views", lambda: [broken])
    found = failures(run_checks(working, ["good"], Location.open(working.parent)), "good")
    assert found["check_nowhere"].severity == "error"
    assert "cannot be executed" in str(found["check_nowhere"].detail)


def test_no_database_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No working database"):
        run_checks(tmp_path / "none.duckdb", ["a"], Location.open(tmp_path))


def dataset() -> tuple[pd.DataFrame, pd.DataFrame]:
    sequences = pd.DataFrame(
        {
            "seq_id": [1, 2, 3],
            "group_id": ["a", "b", "b"],
            "source": "text",
            "split": ["train", "test", "test"],
            "n_tokens": [3, 4, 5],
            "tokens": [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]],
        }
    )
    labels = pd.DataFrame(
        {
            "feature": "digit",
            "seq_id": [1, 1, 2, 3],
            "position": [0, 2, 3, None],
            "label": [1, -1, 1, -1],
            "target": [None] * 4,
        }
    )
    return sequences, labels


def test_a_sound_dataset_passes() -> None:
    results = check_dataset(*dataset())
    assert len(results) > 10
    assert all(result.passed for result in results)
    sequences, labels = dataset()
    targets = labels.assign(label=None, target=[0.0, 2.0, 3.0, 4.0])
    assert all(result.passed for result in check_dataset(sequences, targets))


@pytest.mark.parametrize(
    ("frame", "column", "row", "value", "rule"),
    [
        ("sequences", "seq_id", 1, 1, "sequences_unique"),
        ("sequences", "split", 0, "dev", "sequences_split_known"),
        ("sequences", "split", 2, "train", "groups_in_one_split"),
        ("sequences", "group_id", 0, None, "sequences_group_id_not_null"),
        ("sequences", "n_tokens", 0, 0, "sequences_have_tokens"),
        ("labels", "label", 1, 0, "labels_plus_or_minus_one"),
        ("labels", "label", 1, None, "labels_answer_not_null"),
        ("labels", "position", 1, 3, "positions_within_sequence"),
        ("labels", "position", 1, -1, "positions_not_negative"),
        ("labels", "position", 1, 0, "labels_unique"),
        ("labels", "seq_id", 3, 9, "labels_of_known_sequences"),
    ],
)
def test_a_flaw_in_a_dataset_is_found(frame: str, column: str, row: int, value: object, rule: str) -> None:
    sequences, labels = dataset()
    target = (sequences if frame == "sequences" else labels).astype({column: object})
    target.loc[row, column] = value
    results = check_dataset(target, labels) if frame == "sequences" else check_dataset(sequences, target)
    failed = {result.check_name: result for result in results if not result.passed}
    assert rule in failed
    assert failed[rule].detail


def test_empty_frames_and_missing_columns_do_not_pass() -> None:
    sequences, labels = dataset()
    failed = {r.check_name for r in check_dataset(sequences.iloc[:0], labels.iloc[:0]) if not r.passed}
    assert {"sequences_not_empty", "labels_not_empty"} <= failed
    failed = {r.check_name for r in check_dataset(sequences.drop(columns="split"), labels) if not r.passed}
    assert {"sequences_split_known", "groups_in_one_split"} <= failed
