"""Scores that stay in their fragments: the same answers as from a database that holds them all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from sparse_probing import schemas
from sparse_probing.errors import InputError
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import MANIFEST_NAME, write_manifest
from sparse_probing.store.parquet import write_table
from sparse_probing.warehouse import catalog, connect, score_files
from sparse_probing.warehouse.asking import Limits, ask
from sparse_probing.warehouse.checks import run_checks
from sparse_probing.warehouse.loading import forget_runs, load_results
from sparse_probing.warehouse.published import published_runs
from sparse_probing.warehouse.publishing import Publisher
from tests.sql.rows import write_run

OUTSIDE, INSIDE = 0, 1_000_000


def publisher(folder: Path, most_scores: int = OUTSIDE, *, name: str = "outside") -> Publisher:
    def intervals(rows: Any) -> Any:
        return np.zeros(len(rows.others)) - 0.25, np.zeros(len(rows.others)) + 0.25

    root = Location.open(folder)
    return Publisher(root, folder / f"{name}.working", folder / f"{name}.duckdb", intervals, print, most_scores)


def everything(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables and views but what says how and when they came there."""
    told_apart = {"loaded_fragments", "score_files", score_files.KIND, catalog.KEPT_SCORES}
    with connect(path) as con:
        names = [name for (name, *_) in con.execute("show tables").fetchall()]
        found = {name: con.execute(f"from {name} order by all").fetchall() for name in names if name not in told_apart}
        columns = ", ".join(schemas.NEURON_SCORES.names)
        return found | {"scores": con.execute(f"select {columns} from neuron_scores order by all").fetchall()}


def outside_runs(path: Path) -> list[str]:
    with connect(path) as con:
        return [run_id for (run_id,) in con.execute("select run_id from score_files order by run_id").fetchall()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data of o'neill"
    for run_id, mcc in (("a", 0.5), ("b", 0.25)):
        write_run(Location.open(folder), run_id, test_mcc=mcc, features=("digit", "space"))
    return folder


def test_answers_equal_those_of_a_database_with_all_scores(data: Path) -> None:
    inside, outside = publisher(data, INSIDE, name="inside"), publisher(data)
    for one in (inside, outside):
        one.load(["a", "b"])
        results_of_checks = one.check(["a", "b"])
        assert all(result.passed for result in results_of_checks if result.suite != "dataset")
        one.publish()
    first, second = everything(inside.snapshot), everything(outside.snapshot)
    for found in (first, second):
        # When they ran.
        del found["check_results"], found["validation_checks"]
    assert len(first["scores"]) == 16
    assert first == second
    assert outside_runs(outside.snapshot) == ["a", "b"]
    assert outside_runs(inside.snapshot) == []
    with connect(outside.snapshot) as con:
        assert catalog.has_todays_views(con)
        assert con.execute("select count(*) from kept_scores").fetchall() == [(8,)]
        # No file is opened for what rankings read.
        ((_, plan),) = con.execute("explain from neuron_rankings").fetchall()
        assert "READ_PARQUET" not in plan


def test_it_is_a_matter_of_the_number_of_rows(data: Path) -> None:
    working = data / "w.duckdb"
    root = Location.open(data)
    load_results(working, root, most_scores=16)
    assert outside_of(working) == []
    write_run(root, "c")
    load_results(working, root, most_scores=16)
    assert outside_of(working) == ["a", "b", "c"]
    # Once it is so it stays: what comes next is not copied either.
    write_run(root, "d")
    load_results(working, root, most_scores=INSIDE)
    assert outside_of(working) == ["a", "b", "c", "d"]


def outside_of(working: Path) -> list[str]:
    with duckdb.connect(str(working)) as con:
        found = [run_id for (run_id,) in con.execute("select run_id from score_files order by run_id").fetchall()]
        counts = dict(con.execute("select run_id, count(*) from neuron_scores group by run_id").fetchall())
        expected = dict(
            con.execute("select run_id, n_rows from loaded_fragments where kind = 'neuron_scores'").fetchall()
        )
        assert counts == expected
        return found


def test_runs_are_replaced_and_forgotten(data: Path) -> None:
    working, root = data / "w.duckdb", Location.open(data)
    load_results(working, root, most_scores=OUTSIDE)
    write_run(root, "a", test_mcc=0.75)
    assert load_results(working, root, most_scores=OUTSIDE).run_ids == ("a",)
    with duckdb.connect(str(working)) as con:
        found = con.execute("select distinct run_id, shortlisted, test_mcc from neuron_scores order by all").fetchall()
    assert found == [("a", False, 0.75), ("a", True, 0.75), ("b", False, 0.25), ("b", True, 0.25)]
    forget_runs(working, ["b"])
    assert outside_of(working) == ["a"]


def test_of_runs_whose_fragments_are_gone_the_shortlisted_rows_are_left(data: Path) -> None:
    working, root = data / "w.duckdb", Location.open(data)
    load_results(working, root, most_scores=OUTSIDE)
    for kind in schemas.RESULT_KINDS:
        shutil.rmtree(data / "results" / kind / "a")
    load_results(working, root, most_scores=OUTSIDE)
    with duckdb.connect(str(working)) as con:
        found = con.execute(
            "select run_id, shortlisted, count(*) from neuron_scores group by all order by all"
        ).fetchall()
    assert found == [("a", True, 4), ("b", False, 4), ("b", True, 4)]


def test_a_fragment_that_comes_back_is_read_again(data: Path, tmp_path: Path) -> None:
    """As one that was set aside, and made anew with the same bytes: by its digest, nothing is to be loaded."""
    working, root = data / "w.duckdb", Location.open(data)
    load_results(working, root, most_scores=OUTSIDE)
    folder = data / "results" / "neuron_scores" / "a"
    folder.rename(tmp_path / "away")
    load_results(working, root, most_scores=OUTSIDE)
    with duckdb.connect(str(working)) as con:
        assert con.execute("select run_id from score_files").fetchall() == [("b",)]
    (tmp_path / "away").rename(folder)
    assert load_results(working, root, most_scores=OUTSIDE).run_ids == ()
    assert outside_of(working) == ["a", "b"]


def test_a_data_folder_may_be_moved(data: Path) -> None:
    one = publisher(data)
    one.load(), one.check(["a", "b"]), one.publish()
    before = everything(one.snapshot)
    moved = data.rename(data.with_name("elsewhere"))
    one = publisher(moved)
    with connect(one.snapshot) as con:
        assert con.execute("select count(*) from neuron_rankings").fetchall() == [(8,)]
        with (
            pytest.raises(InputError, match="moved") as caught,
            ask(con, "select count(*) from neuron_scores", Limits()),
        ):
            pass
        assert caught.value.remedy.endswith("sparse-probing repair")
    found = published_runs(one.snapshot, ["a", "b"])
    assert found is not None
    assert not found.is_of_this_version
    assert one.load().rebuilt_from is None
    one.publish()
    assert everything(one.snapshot) == before


def test_a_damaged_file_costs_no_database(data: Path) -> None:
    working, root = data / "w.duckdb", Location.open(data)
    load_results(working, root, most_scores=OUTSIDE)
    (data / "results" / "neuron_scores" / "a" / "part-00000.parquet").write_bytes(b"not a file of rows")
    assert load_results(working, root, most_scores=OUTSIDE).rebuilt_from is None
    with duckdb.connect(str(working)) as con:
        found = con.execute("select run_id, count(*) from neuron_scores group by all order by all").fetchall()
        assert found == [("a", 4), ("b", 8)]
    # Made anew, it is as it was.
    write_run(root, "a", features=("digit", "space"))
    load_results(working, root, most_scores=OUTSIDE)
    assert outside_of(working) == ["a", "b"]


def test_a_file_of_another_version_is_copied(data: Path) -> None:
    """Columns that it lacks are null in the table; its file cannot be read as one of today's."""
    root = Location.open(data)
    folder = results.run_folder(root, score_files.KIND, "a")
    lacking = schemas.fragment(score_files.KIND).remove(schemas.NEURON_SCORES.get_field_index("test_mcc_low"))
    entries = {}
    for name in ("part-00000.parquet", "part-00001.parquet"):
        rows = pq.read_table((folder / name).path).select(lacking.names)
        entries[name] = write_table(folder / name, rows, lacking)
    (folder / MANIFEST_NAME).delete()
    write_manifest(folder, kind="results/neuron_scores", digest="x", spec={}, files=entries, facts={"run_id": "a"})
    working = data / "w.duckdb"
    assert load_results(working, root, most_scores=OUTSIDE).left_out == {}
    assert outside_of(working) == ["b"]
    with duckdb.connect(str(working)) as con:
        nulls = con.execute("select run_id, count_if(test_mcc_low is null) from neuron_scores group by 1 order by 1")
        assert nulls.fetchall() == [("a", 8), ("b", 0)]


def test_a_database_that_cannot_be_used_is_taken_over_as_it_is(data: Path) -> None:
    """Another version's, and one that is damaged while the snapshot is sound: scores are not copied for that."""
    one = publisher(data)
    one.load(), one.check(["a", "b"]), one.publish()
    before = everything(one.snapshot)
    with duckdb.connect(str(one.working)) as con:
        con.execute("alter table features add column surplus integer")
    assert one.load().rebuilt_from is not None
    one.publish()
    assert everything(one.snapshot) == before
    one.working.write_bytes(b"not a database")
    shutil.rmtree(data / "results" / "runs" / "a")
    assert one.load().rebuilt_from is not None
    assert outside_of(one.working) == ["a", "b"]


def test_an_object_store_keeps_its_scores_in_the_database(data: Path) -> None:
    root = Location.open(data)
    assert score_files.can_be_outside(root)
    assert not score_files.can_be_outside(root / "what*ever")
    from pyarrow.fs import SubTreeFileSystem

    assert not score_files.can_be_outside(Location(SubTreeFileSystem("", root.filesystem), root.path))


def test_a_users_statement_reads_those_files_and_writes_none(data: Path, tmp_path: Path) -> None:
    one = publisher(data)
    one.load(), one.publish()
    (tmp_path / "secret.txt").write_text("secret")
    before = sorted(path for path in data.rglob("*") if path.is_file())
    into = data / "results" / "neuron_scores" / "a" / "part-00009.parquet"
    with connect(one.snapshot) as con:
        for _ in range(2):
            with ask(con, "select count(*) from neuron_scores where not shortlisted", Limits()) as answer:
                assert list(answer) == [(8,)]
            for sql in (
                "explain analyze select count(*) from neuron_scores",
                "pivot neuron_scores on feature using count(*) group by run_id",
            ):
                with ask(con, sql, Limits()) as answer:
                    assert list(answer)
            for sql in (
                f"with c as (copy runs to '{into}') select 1",
                f"explain analyze copy runs to '{into}'",
                f"/* */ explain analyze copy runs to '{into}'",
                f"explain /* */ analyze copy runs to '{into}'",
                f"explain (analyze) copy runs to '{into}'",
                f"explain analyze with c as (copy runs to '{into}') select 1",
                f"with c as (copy runs to '{into}') pivot runs on study using count(*)",
                f"select content from read_text('{tmp_path}/secret.txt')",
            ):
                with pytest.raises(InputError), ask(con, sql.replace("o'neill", "o''neill"), Limits()):
                    pass
                assert not into.exists(), sql
    assert sorted(path for path in data.rglob("*") if path.is_file()) == before


def test_checks_see_every_row(data: Path) -> None:
    """A score out of its range, in a row that no ranking reads."""
    root = Location.open(data)
    write_run(root, "wrong", test_mcc=1.5)
    working = data / "w.duckdb"
    load_results(working, root, most_scores=OUTSIDE)
    failed = {one.check_name: one.n_violations for one in run_checks(working, ["wrong"], root) if not one.passed}
    assert failed["check_neuron_score_ranges"] == 4
