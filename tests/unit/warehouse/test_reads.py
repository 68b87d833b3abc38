"""Typed reads, and users' statements that can neither write nor end in a traceback."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from sparse_probing.errors import InputError
from sparse_probing.warehouse import connect, reads


def test_reads_are_typed_and_filtered(con: duckdb.DuckDBPyConnection) -> None:
    assert [run.run_id for run in reads.runs(con)] == ["a", "b"]
    assert reads.runs(con, ["b"])[0].layers == (0, 1)
    assert [(row.run_id, row.feature) for row in reads.best_neurons(con)] == [
        ("a", "capital"),
        ("a", "digit"),
        ("b", "digit"),
    ]
    assert reads.best_neurons(con, []) == []
    row = reads.best_neurons(con, ["b"])[0]
    assert (row.layer, row.neuron, row.ties, row.test_mcc) == (0, 0, None, 0.5)
    assert len(reads.sparsity_curves(con, ["a"])) == 2
    assert len(reads.layer_heatmap(con)) == 6
    assert set(reads.baselines(con)["variant"]) == {"real"}
    assert reads.checks(con) == []
    assert reads.checkpoint_trajectories(con)["run_id"].nunique() == 2


def test_a_snapshot_of_another_version_is_told(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "old.duckdb")) as con:
        con.execute("create table other (a int)")
    with (
        connect(tmp_path / "old.duckdb") as con,
        pytest.raises(InputError, match="Publish it again: sparse-probing repair"),
    ):
        reads.runs(con)
