"""The one writer: idempotent, independent of order, whole runs, and safe against being killed or read meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from sparse_probing import schemas
from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import connect, loading
from sparse_probing.warehouse.checks import run_checks
from sparse_probing.warehouse.loading import load_results, publish, set_threshold
from tests.sql.rows import write_fragment, write_run

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.open(tmp_path)


@pytest.fixture
def working(tmp_path: Path) -> Path:
    return tmp_path / "working.duckdb"


def contents(working: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, in an order of its own."""
    con = duckdb.connect(str(working), read_only=True)
    try:
        return {
            kind: sorted(con.execute(f"select * from {kind}").fetchall(), key=repr)
            for kind in schemas.TABLES
            if kind != "check_results"
        }
    finally:
        con.close()


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )


def test_loads_every_finished_fragment_once(root: Location, working: Path) -> None:
    write_run(root, "a")
    write_run(root, "b", features=("digit", "capital"))
    (Path(root.path) / "results/neuron_scores/unfinished").mkdir()
    first = load_results(working, root)
    assert first.run_ids == ("a", "b")
    assert (first.n_fragments, first.n_unchanged, first.rebuilt_from) == (10, 0, None)
    assert first.n_rows == {
        "runs": 2,
        "features": 3,
        "neuron_scores": 12,
        "probe_fits": 6,
        "probe_supports": 6,
        "check_results": 0,
    }
    before = contents(working)
    again = load_results(working, root)
    assert (again.run_ids, again.n_fragments, again.n_unchanged) == ((), 0, 10)
    assert contents(working) == before


def test_rows_arrive_as_written(root: Location, working: Path) -> None:
    write_fragment(root, "runs", "a", [{"layers": [3, 5], "max_quantisation_error": None}])
    load_results(working, root)
    con = duckdb.connect(str(working), read_only=True)
    row = con.execute("select layers, max_quantisation_error, created_at::timestamp::varchar from runs").fetchall()
    con.close()
    assert row == [([3, 5], None, "2026-01-01 00:00:00")]


def test_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    roots = [Location.open(tmp_path / name) for name in ("one", "two")]
    for root, order in zip(roots, (("a", "b"), ("b", "a")), strict=True):
        for run_id in order:
            write_run(root, run_id, test_mcc=0.25 if run_id == "a" else 0.5)
            load_results(Path(root.path) / "working.duckdb", root)
    # a run whose fragments come one by one ends up the same
    parts = Location.open(tmp_path / "parts")
    for run_id in ("b", "a"):
        write_run(parts, run_id, test_mcc=0.25 if run_id == "a" else 0.5)
        scores = tmp_path / "parts/results/neuron_scores" / run_id
        scores.rename(tmp_path / "later")
        load_results(tmp_path / "parts/working.duckdb", parts)
        (tmp_path / "later").rename(scores)
        load_results(tmp_path / "parts/working.duckdb", parts)
    found = [contents(tmp_path / name / "working.duckdb") for name in ("one", "two", "parts")]
    assert found[0] == found[1] == found[2]


def test_a_changed_run_is_replaced_as_a_whole(root: Location, working: Path) -> None:
    write_run(root, "a", features=("digit", "capital"))
    write_run(root, "b")
    load_results(working, root)
    run_checks(working, ["a", "b"])
    others = [row for row in contents(working)["neuron_scores"] if row[0] == "b"]
    (root / "results" / "probe_supports" / "a").delete()
    write_fragment(root, "features", "a", [{"feature": "digit"}])
    write_fragment(root, "neuron_scores", "a", [{"test_mcc": 0.125}])
    assert load_results(working, root).run_ids == ("a",)
    found = contents(working)
    assert [row[:2] for row in found["features"]] == [("a", "digit"), ("b", "digit")]
    assert len([row for row in found["neuron_scores"] if row[0] == "a"]) == 1
    assert not [row for row in found["probe_supports"] if row[0] == "a"]
    assert [row for row in found["neuron_scores"] if row[0] == "b"] == others
    con = duckdb.connect(str(working), read_only=True)
    assert con.execute("select distinct run_id from check_results").fetchall() == [("b",)]
    con.close()


@pytest.mark.parametrize("damage", ["bytes", "missing", "schema", "run_id", "manifest"])
def test_a_damaged_fragment_is_named_and_the_rest_is_loaded(root: Location, working: Path, damage: str) -> None:
    write_run(root, "a", test_mcc=0.25)
    load_results(working, root)
    before = contents(working)
    write_run(root, "a", test_mcc=0.75)
    write_run(root, "b")
    folder = Path(root.path) / "results/features/a"
    name = "part-00000.parquet"
    if damage == "bytes":
        (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"x")
    elif damage == "missing":
        (folder / name).unlink()
    elif damage == "schema":
        (folder / "manifest.json").unlink()
        write_fragment(root, "runs", "other", [{}])
        (Path(root.path) / "results/runs/other").rename(Path(root.path) / "results/features/other")
        folder = Path(root.path) / "results/features/other"
        write_fragment(root, "runs", "other", [{}])
    elif damage == "run_id":
        (folder / "manifest.json").unlink()
        folder = folder.rename(folder.with_name("renamed"))
        write_fragment(root, "runs", "renamed", [{}])
        write_fragment(root, "features", "a", [{}]).filesystem.move(
            str(Path(root.path) / "results/features/a/manifest.json"), str(folder / "manifest.json")
        )
        name = "manifest.json"
    else:
        (folder / "manifest.json").write_text("{")
        name = "manifest.json"
    with pytest.raises(ArtifactError) as caught:
        load_results(working, root)
    assert str(folder / name) in caught.value.message
    assert caught.value.remedy
    found = contents(working)
    assert [row for row in found["neuron_scores"] if row[0] == "b"]
    if damage in ("bytes", "missing", "manifest"):
        for kind in found:
            assert [row for row in found[kind] if row[0] == "a"] == before[kind]


def test_a_run_is_loaded_only_when_it_is_whole(root: Location, working: Path) -> None:
    write_run(root, "a")
    (root / "results" / "runs" / "a").delete()
    assert load_results(working, root).run_ids == ()
    write_fragment(root, "runs", "a", [{}])
    assert load_results(working, root).run_ids == ("a",)


def test_a_second_loader_is_turned_away(root: Location, working: Path) -> None:
    write_run(root, "a")
    load_results(working, root)
    holder = python(
        "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()", working
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        for action in (lambda: load_results(working, root), lambda: publish(working, working.with_name("x.duckdb"))):
            with pytest.raises(ArtifactError, match="is in use"):
                action()
    finally:
        holder.kill()
        holder.communicate()
    assert load_results(working, root).n_unchanged == 5


KILLED_LOADER = """
import os, signal, sys
from pathlib import Path
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import loading

insert, calls = loading._insert_fragment, []

def insert_and_die(connection, fragment):
    calls.append(fragment)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return insert(connection, fragment)

loading._insert_fragment = insert_and_die
loading.load_results(Path(sys.argv[1]), Location.open(sys.argv[2]))
"""


def test_a_killed_loader_leaves_whole_runs(root: Location, working: Path, tmp_path: Path) -> None:
    for run_id in ("a", "b"):
        write_run(root, run_id)
    killed = python(KILLED_LOADER, working, root.path, 8)
    assert killed.wait(timeout=900) == -signal.SIGKILL
    # the first run was committed, the second was half inserted
    with duckdb.connect(str(working)) as con:
        assert con.execute("select distinct run_id from loaded_fragments").fetchall() == [("a",)]
        assert con.execute("select run_id from runs").fetchall() == [("a",)]
    report = load_results(working, root)
    assert (report.run_ids, report.rebuilt_from) == (("b",), None)
    load_results(tmp_path / "fresh.duckdb", root)
    assert contents(working) == contents(tmp_path / "fresh.duckdb")


def test_an_unusable_working_file_is_rebuilt_from_the_fragments(root: Location, working: Path) -> None:
    write_run(root, "a")
    load_results(working, root)
    before = contents(working)
    working.write_bytes(b"not a database" * 1000)
    report = load_results(working, root)
    assert report.run_ids == ("a",)
    assert report.rebuilt_from is not None
    assert report.rebuilt_from.read_bytes().startswith(b"not a database")
    assert contents(working) == before


def test_a_working_file_of_other_tables_is_rebuilt_and_keeps_its_thresholds(root: Location, working: Path) -> None:
    write_run(root, "a")
    load_results(working, root)
    before = contents(working)
    set_threshold(working, "latex", "validation_mcc", 0.5)
    con = duckdb.connect(str(working))
    for (name,) in con.execute("select view_name from duckdb_views() where not internal").fetchall():
        con.execute(f"drop view if exists {name}")
    con.execute("alter table features add column surplus integer")
    con.close()
    assert load_results(working, root).rebuilt_from is not None
    assert contents(working) == before
    con = duckdb.connect(str(working), read_only=True)
    found = con.execute("select threshold from interest_thresholds where collection = 'latex'").fetchall()
    con.close()
    assert found == [(0.5,)]


def test_thresholds_are_edited_by_known_metrics_only(root: Location, working: Path) -> None:
    load_results(working, root)
    set_threshold(working, "mine", "validation_f1", 0.5)
    set_threshold(working, "*", "validation_mcc", None)
    con = duckdb.connect(str(working), read_only=True)
    found = con.execute("select collection, metric from interest_thresholds where collection in ('mine', '*')")
    assert found.fetchall() == [("mine", "validation_f1")]
    con.close()
    with pytest.raises(InputError, match="never on test"):
        set_threshold(working, "mine", "test_mcc", 0.5)


def test_the_snapshot_is_whole_and_needs_nothing_of_ours(root: Location, working: Path, tmp_path: Path) -> None:
    write_run(root, "a")
    load_results(working, root)
    snapshot = tmp_path / "published" / "results.duckdb"
    snapshot.parent.mkdir()
    leftover = snapshot.parent / ".tmp-publish-results.duckdb-1234"
    leftover.write_bytes(b"half a copy")
    publish(working, snapshot)
    assert [path.name for path in snapshot.parent.iterdir()] == ["results.duckdb"]
    client = "import duckdb, sys; con = duckdb.connect(); con.execute(f\"attach '{sys.argv[1]}' as r (read_only)\"); "
    client += "print(con.execute('select feature from r.best_neuron_per_feature').fetchall())"
    output, errors = python(client, snapshot).communicate(timeout=900)
    assert output.strip() == "[('digit',)]", errors


def test_publishing_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No working database"):
        publish(tmp_path / "none.duckdb", tmp_path / "results.duckdb")


WRITER = """
import os, signal, sys
import duckdb
con = duckdb.connect(sys.argv[1])
if sys.argv[2] == "live":
    print("ready", flush=True)
    sys.stdin.readline()
con.execute("create table mine as select 1 as one")
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
print("written", flush=True)
sys.stdin.readline()
con.close()
"""


def test_a_log_left_beside_the_snapshot_does_not_outlive_it(root: Location, working: Path, tmp_path: Path) -> None:
    """Someone opened the snapshot for writing and was killed; the log left there fitted no later snapshot.

    After the next publish nobody could open it: "WAL does not match database file".
    """
    write_run(root, "a")
    load_results(working, root)
    snapshot = tmp_path / "results.duckdb"
    log = tmp_path / "results.duckdb.wal"
    assert publish(working, snapshot) is None
    python(WRITER, snapshot, "killed").communicate(timeout=900)
    assert log.is_file()
    write_run(root, "b")
    load_results(working, root)
    assert publish(working, snapshot) == log
    assert not log.exists()
    with connect(snapshot) as con:
        assert con.execute("select count(*) from runs").fetchall() == [(2,)]
        assert not con.execute("from duckdb_tables() where table_name = 'mine'").fetchall()


def test_a_publish_that_dies_between_its_steps_leaves_a_snapshot_that_opens(
    root: Location, working: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes before the new file comes: the old snapshot opens without it, the new one does not open with it."""
    write_run(root, "a")
    load_results(working, root)
    snapshot = tmp_path / "results.duckdb"
    publish(working, snapshot)
    python(WRITER, snapshot, "killed").communicate(timeout=900)
    write_run(root, "b")
    load_results(working, root)

    def dies(source: Path, target: Path) -> None:
        raise OSError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(loading.os, "replace", dies)
        with pytest.raises(ArtifactError, match="killed here"):
            publish(working, snapshot)
    with connect(snapshot) as con:
        assert con.execute("select count(*) from runs").fetchall() == [(1,)]


@pytest.mark.parametrize("when", ["early", "live"])
def test_a_writer_of_the_replaced_snapshot_does_no_harm_by_closing(
    root: Location, working: Path, tmp_path: Path, when: str
) -> None:
    """A session that has the old file open for writing, its log written before or after the new snapshot came."""
    write_run(root, "a")
    load_results(working, root)
    snapshot = tmp_path / "results.duckdb"
    publish(working, snapshot)
    writer = python(WRITER, snapshot, when)
    assert writer.stdin is not None
    assert writer.stdout is not None
    assert writer.stdout.readline() == {"early": "written\n", "live": "ready\n"}[when]
    write_run(root, "b")
    load_results(working, root)
    publish(working, snapshot)
    if when == "live":
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "written\n"
        with pytest.raises(InputError, match="WAL") as caught:
            connect(snapshot)
        assert "Close whoever still writes to it" in caught.value.remedy
    _, errors = writer.communicate("\n", timeout=900)
    assert writer.returncode == 0, errors
    with connect(snapshot) as con:
        assert con.execute("select count(*) from runs").fetchall() == [(2,)]


READER = """
import sys
from sparse_probing.warehouse import connect, loading
versions = set()
held = connect(sys.argv[1])
first = held.execute("select study from runs").fetchall()
print("ready", flush=True)
for _ in range(100):
    assert held.execute("select study from runs").fetchall() == first
    rows = held.execute("select count(*) from best_neuron_per_feature").fetchall()
    assert rows == [(1,)], rows
held.close()
while len(versions) < 5:
    con = connect(sys.argv[1])
    ((study, n_scores),) = con.execute(
        "select study, (select count(*) from neuron_scores) as n_scores from runs"
    ).fetchall()
    assert n_scores == 4 + int(study), (study, n_scores)
    versions.add(study)
    con.close()
print("seen", len(versions))
"""


def test_snapshots_are_replaced_under_a_reader(root: Location, working: Path, tmp_path: Path) -> None:
    """A reader in another process keeps its version for 100 queries, and then never sees a mixture of two."""
    snapshot = tmp_path / "results.duckdb"

    def new_version(number: int) -> None:
        write_run(root, "a")
        write_fragment(root, "runs", "a", [{"study": str(number)}])
        places = [{"layer": layer, "neuron": neuron} for layer in (0, 1) for neuron in (0, 1)]
        extra = [{"layer": 9, "neuron": i} for i in range(number)]
        write_fragment(root, "neuron_scores", "a", [*places, *extra])
        load_results(working, root)
        publish(working, snapshot)

    new_version(0)
    reader = python(READER, snapshot)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    deadline, number = time.monotonic() + 900, 0
    while reader.poll() is None and time.monotonic() < deadline:
        number += 1
        new_version(number)
    output, errors = reader.communicate(timeout=900)
    assert output.strip() == "seen 5", errors
    con = connect(snapshot)
    assert con.execute("select study from runs").fetchall() == [(str(number),)]
    con.close()


@pytest.mark.parametrize("error", [duckdb.IOException("Too many open files"), duckdb.OutOfMemoryException("no memory")])
def test_an_error_of_the_surroundings_moves_no_sound_database_aside(
    root: Location, working: Path, monkeypatch: pytest.MonkeyPatch, error: duckdb.Error
) -> None:
    write_run(root, "a")
    load_results(working, root)
    before = working.read_bytes()

    def fails(path: Path) -> duckdb.DuckDBPyConnection:
        raise error

    monkeypatch.setattr(loading, "open_working", fails)
    with pytest.raises(ArtifactError, match="left as it is"):
        load_results(working, root)
    assert [path.name for path in working.parent.iterdir() if path.name.startswith(working.name)] == [working.name]
    assert working.read_bytes() == before


def test_a_path_that_duckdb_reads_otherwise_moves_nothing(root: Location, tmp_path: Path) -> None:
    write_run(root, "a")
    odd = tmp_path / "odd?name" / "working.duckdb"
    odd.parent.mkdir()
    odd.write_bytes(b"someone's file")
    with pytest.raises(ArtifactError, match="left as it is"):
        load_results(odd, root)
    assert odd.read_bytes() == b"someone's file"
    assert list(odd.parent.iterdir()) == [odd]
