"""What runs were made from: rows of `artifacts` from manifests, and the way from a run to its dataset and text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest

from sparse_probing import config, schemas
from sparse_probing.store import manifests, results
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FREED_NAME, FileEntry, write_manifest
from sparse_probing.warehouse import lineage
from sparse_probing.warehouse.loading import forget_runs, load_results, publish
from tests.sql.rows import write_fragment, write_run

DATASET, ACTIVATIONS, OTHER = "d" * 64, "a" * 64, "b" * 64
DATASET_PATH = f"datasets/{config.dataset_name('text_features', DATASET)}"


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.open(tmp_path / "data")


@pytest.fixture
def working(tmp_path: Path) -> Path:
    return tmp_path / "working.duckdb"


def activations_path(digest: str = ACTIVATIONS) -> str:
    return f"activations/tiny@main/{config.activations_name(DATASET, digest)}"


def write_artifact(
    root: Location, path: str, kind: str, digest: str, inputs: Mapping[str, str], sizes: list[int], **made: float
) -> None:
    files = {f"{number}.parquet": FileEntry(sha256="0", size_bytes=n, n_rows=1) for number, n in enumerate(sizes)}
    write_manifest(root / path, kind=kind, digest=digest, spec={}, inputs=inputs, files=files, made=made)


def write_inputs(root: Location, *activations: str) -> None:
    inputs = {"tokenizer_digest": "t", "files:news.csv": "n"}
    write_artifact(root, DATASET_PATH, "dataset", DATASET, inputs, [10, 5], seconds=2.0)
    for digest in activations:
        of = {"dataset": DATASET, "weights": "w"}
        write_artifact(root, activations_path(digest), "activations", digest, of, [100, 200, 300], seconds=7.5)


def write_whole_run(root: Location, run_id: str, activations: str = ACTIVATIONS) -> None:
    write_run(root, run_id)
    write_fragment(root, "runs", run_id, [{"dataset_digest": DATASET, "activations_digest": activations}])


def rows(working: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(working), read_only=True) as con:
        return con.execute(sql).fetchall()


def states(working: Path) -> dict[str, str]:
    return dict(rows(working, "select path, state from artifacts"))


def test_from_a_run_to_the_text(root: Location, working: Path) -> None:
    write_inputs(root, ACTIVATIONS)
    write_whole_run(root, "r1")
    load_results(working, root)
    found = rows(working, "select depth, kind, input_name, input from lineage where run_id = 'r1'")
    assert found == [
        (0, "run", "activations", activations_path()),
        (0, "run", "dataset", DATASET_PATH),
        (1, "activations", "dataset", DATASET_PATH),
        (1, "activations", "weights", "w"),
        (2, "dataset", "files:news.csv", "n"),
        (2, "dataset", "tokenizer_digest", "t"),
    ]
    known = rows(working, "select kind, n_files, bytes, seconds, state, digest from artifacts order by kind")
    fragments = [manifests.read_manifest(results.run_folder(root, kind, "r1")) for kind in schemas.RESULT_KINDS]
    files = [entry for one in fragments for entry in one.files.values()]
    assert known == [
        ("activations", 3, 600, 7.5, "finished", ACTIVATIONS),
        ("dataset", 2, 15, 2.0, "finished", DATASET),
        ("run", len(files), sum(entry.size_bytes for entry in files), None, "finished", "runs-r1"),
    ]
    created = rows(working, "select created_at from artifacts where kind = 'dataset'")
    assert created == [(manifests.read_made(root / DATASET_PATH).created_at,)]


def test_a_manifest_is_read_once(root: Location, working: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(root, ACTIVATIONS, OTHER)
    write_whole_run(root, "r1")
    load_results(working, root)
    read: list[str] = []
    find = lineage.find_manifest

    def counted(folder: Location, **options: Any) -> Any:
        read.append(folder.path.removeprefix(f"{root.path}/"))
        return find(folder, **options)

    monkeypatch.setattr(lineage, "find_manifest", counted)
    load_results(working, root)
    assert read == []
    write_whole_run(root, "r2", OTHER)
    load_results(working, root)
    wanted = {activations_path(OTHER), *(f"results/{kind}/r2" for kind in schemas.RESULT_KINDS)}
    assert (len(read), set(read)) == (len(wanted), wanted)


def test_rows_go_when_no_run_needs_them(root: Location, working: Path) -> None:
    write_inputs(root, ACTIVATIONS, OTHER)
    write_whole_run(root, "r1")
    write_whole_run(root, "r2", OTHER)
    load_results(working, root)
    assert set(states(working)) == {
        DATASET_PATH, activations_path(), activations_path(OTHER), "results/runs/r1", "results/runs/r2"
    }  # fmt: skip
    forget_runs(working, ["r2"])
    assert set(states(working)) == {DATASET_PATH, activations_path(), "results/runs/r1"}
    # A run that was replaced by one of other activations.
    write_whole_run(root, "r1", OTHER)
    results.run_folder(root, "runs", "r2").delete()
    load_results(working, root)
    assert set(states(working)) == {DATASET_PATH, activations_path(OTHER), "results/runs/r1"}
    forget_runs(working, ["r1"])
    assert states(working) == {}


def test_what_was_freed_is_told_with_what_is_known_of_it(root: Location, working: Path) -> None:
    write_inputs(root, ACTIVATIONS)
    write_whole_run(root, "r1")
    load_results(working, root)
    before = rows(working, "select n_files, bytes, seconds, inputs from artifacts order by path")
    (root / activations_path()).delete()
    (root / activations_path() / FREED_NAME).write_bytes(json.dumps({"size_bytes": 1}).encode())
    (root / DATASET_PATH).delete()
    load_results(working, root)
    assert states(working)[activations_path()] == "finished"
    lineage.look_again(working, root)
    seen = {DATASET_PATH: "missing", activations_path(): "freed", "results/runs/r1": "finished"}
    assert states(working) == seen
    assert rows(working, "select n_files, bytes, seconds, inputs from artifacts order by path") == before
    # A database without them knows what the run's row tells, and the run still leads to its dataset.
    fresh = working.with_name("fresh.duckdb")
    load_results(fresh, root)
    assert states(fresh) == seen
    assert rows(fresh, "select max(depth) from lineage where kind = 'dataset'") == [(2,)]
    assert rows(fresh, "select bytes, seconds from artifacts where state <> 'finished'") == [(None, None)] * 2
    # Another study extracted them again.
    write_inputs(root, ACTIVATIONS)
    write_whole_run(root, "r2")
    load_results(working, root)
    assert set(states(working).values()) == {"finished"}


def test_a_database_of_before_gets_them_and_one_built_anew_keeps_them(root: Location, working: Path) -> None:
    write_inputs(root, ACTIVATIONS)
    write_whole_run(root, "r1")
    load_results(working, root)
    expected = rows(working, "from artifacts order by path")
    snapshot = working.with_name("results.duckdb")
    publish(working, snapshot)
    (root / DATASET_PATH).delete()
    working.unlink()
    load_results(working, root, snapshot=snapshot)
    assert rows(working, "from artifacts order by path") == expected
    write_inputs(root, ACTIVATIONS)
    with duckdb.connect(str(working)) as con:
        con.execute("drop view lineage")
        con.execute("drop table artifacts")
    load_results(working, root)
    assert set(states(working).values()) == {"finished"}
    assert len(states(working)) == 3


def test_a_damaged_manifest_hinders_no_load(root: Location, working: Path) -> None:
    write_inputs(root, ACTIVATIONS)
    write_whole_run(root, "r1")
    (root / DATASET_PATH / "manifest.json").write_bytes(b"{")
    assert load_results(working, root).run_ids == ("r1",)
    assert states(working)[DATASET_PATH] == "missing"
