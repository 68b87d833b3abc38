"""Typed reads, and users' statements that can neither write nor end in a traceback."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from sparse_probing.errors import InputError
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import connect, reads
from sparse_probing.warehouse.loading import load_results, publish
from tests.sql.rows import write_run


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reads")
    root = Location.open(folder)
    write_run(root, "a", features=("digit", "capital"))
    write_run(root, "b")
    load_results(folder / "working.duckdb", root)
    publish(folder / "working.duckdb", folder / "results.duckdb")
    return folder / "results.duckdb"


@pytest.fixture
def con(snapshot: Path) -> duckdb.DuckDBPyConnection:
    return connect(snapshot)


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
    assert (row.layer, row.neuron, row.ties, row.test_mcc) == (0, 0, 2, 0.5)
    assert len(reads.sparsity_curves(con, ["a"])) == 2
    assert len(reads.layer_heatmap(con)) == 6
    assert set(reads.baselines(con)["variant"]) == {"real"}
    assert reads.checks(con) == []
    assert reads.checkpoint_trajectories(con)["run_id"].nunique() == 2


def test_a_query_gives_columns_and_all_rows(con: duckdb.DuckDBPyConnection) -> None:
    found = reads.query(con, "select run_id, len(layers) as n_layers from runs order by run_id;")
    assert found == reads.QueryResult(("run_id", "n_layers"), [("a", 2), ("b", 2)])
    assert reads.query(con, "select 1 as one").rows == [(1,)]


@pytest.mark.parametrize(
    "sql",
    [
        "show tables",
        "describe runs",
        "summarize features",
        "from features",
        "explain select 1",
        "pivot features on feature using count(*)",
        "with r as (select run_id from runs) select run_id from r",
    ],
)
def test_all_ways_to_ask_work(con: duckdb.DuckDBPyConnection, sql: str) -> None:
    assert reads.query(con, sql).columns


@pytest.mark.parametrize(
    "sql",
    [
        "create table t (a int)",
        "create temp table t (a int)",
        "insert into runs select * from runs",
        "with gone as (delete from runs returning run_id) select run_id from gone",
        "drop view neuron_rankings",
        "update interest_thresholds set threshold = 0",
        "copy runs to '{folder}/stolen.csv'",
        "with c as (copy runs to '{folder}/stolen.csv') select 1",
        "explain analyze copy runs to '{folder}/stolen.csv'",
        "export database '{folder}/stolen'",
        "attach '{folder}/stolen.duckdb'",
        "select content from read_text('{folder}/secret.txt')",
        "pragma enable_profiling",
        "set enable_external_access = true",
        "install httpfs",
        "checkpoint",
    ],
)
def test_no_statement_writes_or_leaves_the_snapshot(
    con: duckdb.DuckDBPyConnection, snapshot: Path, tmp_path: Path, sql: str
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    before = snapshot.read_bytes()
    with pytest.raises(InputError) as caught:
        reads.query(con, sql.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    assert snapshot.read_bytes() == before


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "Found 0 SQL statements"),
        ("select 1; select 2", "Found 2 SQL statements"),
        ("selec 1", 'syntax error at or near "selec"'),
        ("select nothing from runs", '"nothing" not found'),
        ("select 1 from best_neurons_per_feature", 'Did you mean "best_neuron_per_feature"'),
        ("select 'text'::integer", "Could not convert string"),
    ],
)
def test_bad_statements_end_in_one_line(con: duckdb.DuckDBPyConnection, sql: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        reads.query(con, sql)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert reads.query(con, "select 1 as one").rows == [(1,)]


def test_a_snapshot_of_another_version_is_told(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "old.duckdb")) as con:
        con.execute("create table other (a int)")
    with (
        connect(tmp_path / "old.duckdb") as con,
        pytest.raises(InputError, match="another version: load the results again"),
    ):
        reads.runs(con)
