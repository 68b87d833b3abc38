"""Neuron lists as files: the published header, a folder a model, the numbers of the views."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sparse_probing.errors import InputError
from sparse_probing.reports.neuron_lists import write_lists
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse.loading import load_results, publish
from tests.sql.rows import write_fragment, write_run

HEADER = "model,dataset,feature,layer,neuron,test_mcc,test_f1_score,test_precision,test_recall,coef"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    root = Location.open(tmp_path / "data")
    write_run(root, "a")
    write_run(root, "b")
    write_fragment(root, "runs", "b", [{"model": "other/model", "hook": "hook_mlp_out"}])
    load_results(tmp_path / "working.duckdb", root)
    publish(tmp_path / "working.duckdb", tmp_path / "results.duckdb")
    return tmp_path / "results.duckdb"


def test_a_folder_a_model_and_a_file_a_list_and_hook(snapshot: Path, tmp_path: Path) -> None:
    written = write_lists(snapshot, tmp_path / "lists")
    names = {str(path.relative_to(tmp_path / "lists")) for path in written}
    assert "tiny@main/top_mono_neurons.csv" in names
    assert "other-model@main/top_mono_neurons.hook_mlp_out.csv" in names
    for path, n_rows in written.items():
        text = path.read_text(encoding="utf-8")
        assert text.splitlines()[0] == HEADER
        rows = list(csv.DictReader(text.splitlines()))
        assert len(rows) == n_rows > 0
        assert all(-1 <= float(row["test_mcc"]) <= 1 and float(row["coef"]) != 0 for row in rows)
    assert not list((tmp_path / "lists").rglob(".tmp-*"))


def test_nothing_published_and_a_folder_in_the_way_are_one_line(snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No published results"):
        write_lists(tmp_path / "nothing.duckdb", tmp_path / "lists")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        write_lists(snapshot, tmp_path / "file")


def test_names_as_long_as_tables_hold_fit_the_file_system(tmp_path: Path) -> None:
    root = Location.open(tmp_path / "data")
    write_run(root, "a")
    names = {"model": "m" * 180, "revision": "r" * 180, "hook": "h" * 300}
    write_fragment(root, "runs", "a", [names])
    load_results(tmp_path / "working.duckdb", root)
    publish(tmp_path / "working.duckdb", tmp_path / "results.duckdb")
    written = write_lists(tmp_path / "results.duckdb", tmp_path / "lists")
    assert written
    assert all(path.is_file() for path in written)
