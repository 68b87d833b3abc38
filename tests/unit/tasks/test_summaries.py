"""The summary of a study at Prefect's page: what the published database says, in cells that nothing breaks out of."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FileEntry, write_manifest
from sparse_probing.warehouse import connect, reads
from sparse_probing.warehouse.loading import load_results, publish
from tasks.summaries import MOST_ROWS, Summary, markdown
from tests.sql.rows import write_fragment, write_run


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b, of one dataset."""
    folder = tmp_path_factory.mktemp("published")
    root = Location.open(folder)
    digest = "d" * 64
    files = {"labels.parquet": FileEntry(sha256="0", size_bytes=1234567, n_rows=1)}
    write_manifest(
        root / "datasets" / f"text_features-{digest[:12]}",
        kind="dataset", digest=digest, spec={}, files=files, made={"seconds": 12.25},
    )  # fmt: skip
    for run_id in ("a", "b"):
        write_run(root, run_id, features=[f"{run_id}{number}" for number in range(30)])
        write_fragment(root, "runs", run_id, [{"dataset_digest": digest, "model": f"model|{run_id}"}])
    load_results(folder / "working.duckdb", root)
    publish(folder / "working.duckdb", folder / "results.duckdb")
    return folder / "results.duckdb"


def summary(snapshot: Path, run_ids: list[str], failed: list[reads.Check]) -> str:
    with connect(snapshot) as connection:
        best, costs = reads.best_neurons(connection, run_ids), reads.artifact_costs(connection, run_ids)
    return markdown(Summary("demo", best, [], failed, costs, {"database": str(snapshot)}))


def test_numbers_are_those_of_the_database(snapshot: Path) -> None:
    text = summary(snapshot, ["a"], [])
    assert text.startswith("# Study demo\n\n30 features probed.\n\n| feature | neuron |")
    # Shared by both runs, and counted once.
    for run_ids in (["a"], ["a", "b"]):
        assert "| datasets | 1 | 12.2 | 1,234,567 |" in summary(snapshot, run_ids, [])
    assert "| extraction | 1 | not known | not known |" in text
    assert "| probing | 1 | not known | " in text
    assert f"| database | {snapshot} |" in text
    assert "All passed." in text


def test_what_differs_is_told_and_what_is_too_long_is_named(snapshot: Path) -> None:
    text = summary(snapshot, ["a", "b"], [])
    assert "| feature | model | neuron |" in text
    assert "| model\\|b |" in text
    assert text.count("| layer ") == MOST_ROWS
    assert f"and {60 - MOST_ROWS} more features: artifact best-neurons-demo, and view" in text


def test_failed_checks_have_name_and_what_was_found(snapshot: Path) -> None:
    detail = "digit: <b>200</b> rows\nof a|b"
    failed = [reads.Check("a", None, None, "views", "check_row_counts", "error", 2, False, detail)]
    assert "| check_row_counts | error | a | 2 | digit: &lt;b>200&lt;/b> rows of a\\|b |" in summary(
        snapshot, ["a"], failed
    )
