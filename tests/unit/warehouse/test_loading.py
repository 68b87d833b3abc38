"""The one writer: idempotent, independent of order, whole runs, and safe against being killed or read meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from sparse_probing import schemas
from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec, ProbingSpec
from sparse_probing.errors import ArtifactError, DamageError, InputError
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_made, write_manifest
from sparse_probing.store.parquet import write_table
from sparse_probing.warehouse import connect, loading, reads
from sparse_probing.warehouse import working as working_file
from sparse_probing.warehouse.checks import run_checks, unchecked_runs
from sparse_probing.warehouse.loading import forget_runs, load_results, publish, set_threshold
from tests.sql.rows import table, write_fragment, write_run

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.open(tmp_path)


@pytest.fixture
def working(tmp_path: Path) -> Path:
    return tmp_path / "working.duckdb"


# Without what says when: two runs that agree differ in it.
AGREEING = {
    kind: ", ".join(name for name in schema.names if name not in schemas.VOLATILE_COLUMNS)
    for kind, schema in schemas.TABLES.items()
}


def contents(working: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, in an order of its own."""
    con = duckdb.connect(str(working), read_only=True)
    try:
        return {
            kind: sorted(con.execute(f"select {AGREEING[kind]} from {kind}").fetchall(), key=repr)
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
    assert (first.n_fragments, first.n_unchanged, first.rebuilt_from) == (2 * len(schemas.RESULT_KINDS), 0, None)
    assert first.n_rows == dict.fromkeys(schemas.TABLES, 0) | {
        "runs": 2,
        "features": 3,
        "neuron_scores": 12,
        "probe_fits": 6,
        "probe_supports": 6,
        "test_labels": 3,
        "test_predictions": 12,
    }
    before = contents(working)
    again = load_results(working, root)
    assert (again.run_ids, again.n_fragments, again.n_unchanged) == ((), 0, first.n_fragments)
    assert contents(working) == before


def test_a_run_of_an_earlier_version_lacks_kinds_and_is_loaded(root: Location, working: Path) -> None:
    write_run(root, "a")
    for kind in schemas.LATER_KINDS:
        results.run_folder(root, kind, "a").delete()
    assert load_results(working, root).run_ids == ("a",)
    assert contents(working)["neuron_scores"]
    results.run_folder(root, "features", "a").delete()
    write_fragment(root, "runs", "a", [{"seed": 7}])
    assert "a" in load_results(working, root).left_out


def test_rows_arrive_as_written(root: Location, working: Path) -> None:
    write_run(root, "a")
    folder = write_fragment(root, "runs", "a", [{"layers": [3, 5], "max_quantisation_error": None}])
    write_fragment(root, "probe_fits", "a", [{"fit_id": "one", "fit_seconds": 0.25}, {"fit_id": "two"}])
    load_results(working, root)
    con = duckdb.connect(str(working), read_only=True)
    row = con.execute("select layers, max_quantisation_error, created_at from runs").fetchall()
    seconds = con.execute("select fit_id, fit_seconds from probe_fits order by fit_id").fetchall()
    con.close()
    assert row == [([3, 5], None, read_made(folder).created_at)]
    assert seconds == [("one", 0.25), ("two", 0.1)]


def test_times_that_were_lost_cost_no_result(root: Location, working: Path, tmp_path: Path) -> None:
    write_run(root, "a")
    (root / "results" / "probe_fits" / "a" / "times-part-00000.parquet").write_bytes(b"")
    (root / "results" / "runs" / "a" / "made.json").delete()
    report = load_results(working, root)
    assert (report.run_ids, report.left_out) == (("a",), {})
    con = duckdb.connect(str(working), read_only=True)
    assert con.execute("select distinct fit_seconds from probe_fits").fetchall() == [(None,)]
    assert con.execute("select now() - created_at < interval 1 hour from runs").fetchall() == [(True,)]
    con.close()


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
    run_checks(working, ["a", "b"], root)
    others = [row for row in contents(working)["neuron_scores"] if row[0] == "b"]
    write_fragment(root, "probe_supports", "a", [])
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


@pytest.mark.parametrize("damage", ["bytes", "missing file", "missing kind", "manifest", "columns", "run_id"])
def test_a_run_that_is_not_whole_stays_as_it_was_loaded_and_stops_no_other(
    root: Location, working: Path, damage: str
) -> None:
    write_run(root, "a", test_mcc=0.25)
    load_results(working, root)
    before = contents(working)
    write_run(root, "a", test_mcc=0.75)
    write_run(root, "b")
    folder = Path(root.path) / "results/neuron_scores/a"
    match damage:
        case "bytes":
            flipped = bytearray((folder / "part-00001.parquet").read_bytes())
            flipped[40] ^= 1
            (folder / "part-00001.parquet").write_bytes(flipped)
        case "missing file":
            (folder / "part-00001.parquet").unlink()
        case "missing kind":
            root.filesystem.delete_dir(str(folder))
        case "manifest":
            (folder / "manifest.json").write_bytes(b"")
        case "columns":
            other = table("neuron_scores", [{"run_id": "a"}]).drop_columns(["neuron"])
            entry = write_table(root / "results/neuron_scores/a/other.parquet", other, other.schema)
            write_manifest(
                root / "results/neuron_scores/a", kind="results/neuron_scores", digest="d", spec={},
                files={"other.parquet": entry}, facts={"run_id": "a"},
            )  # fmt: skip
        case "run_id":
            write_run(root, "c")
            (folder.with_name("c") / "part-00001.parquet").replace(folder / "part-00001.parquet")
            manifest = (folder.with_name("c") / "manifest.json").read_text(encoding="utf-8")
            (folder / "manifest.json").write_text(manifest.replace('"run_id": "c"', '"run_id": "a"'), encoding="utf-8")
            (folder / "made.json").unlink()
    report = load_results(working, root)
    assert "b" in report.run_ids
    assert "a" not in report.run_ids
    assert "a" in report.left_out
    assert "neuron_scores" in report.left_out["a"].message
    assert {kind: [row for row in rows if row[0] == "a"] for kind, rows in contents(working).items()} == before
    write_run(root, "a", test_mcc=0.75)
    assert load_results(working, root).run_ids == ("a",)


def test_a_run_of_an_earlier_version_is_loaded_without_the_columns_that_it_lacks(root: Location, working: Path) -> None:
    write_run(root, "a")
    earlier = table("features", [{"run_id": "a"}]).append_column("dropped_since", pa.array([1]))
    runs = table("runs", [{"run_id": "a", "created_at": datetime(2025, 5, 5, tzinfo=UTC)}])
    runs = runs.drop_columns(["quantisation_error_bound"])
    for kind, found in (("features", earlier), ("runs", runs)):
        folder = root / "results" / kind / "a"
        entry = write_table(folder / "part-00000.parquet", found, found.schema)
        write_manifest(folder, kind=f"results/{kind}", digest="d", spec={}, files={"part-00000.parquet": entry},
                       facts={"run_id": "a"})  # fmt: skip
    report = load_results(working, root)
    assert (report.run_ids, report.left_out) == (("a",), {})
    con = duckdb.connect(str(working), read_only=True)
    found = con.execute("select quantisation_error_bound, created_at::date::varchar from runs").fetchall()
    con.close()
    assert found == [(None, "2025-05-05")]


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
    assert load_results(working, root).n_unchanged == len(schemas.RESULT_KINDS)


def test_runs_are_forgotten_also_where_only_the_snapshot_is_left(root: Location, working: Path, tmp_path: Path) -> None:
    """As on another machine, or after the working database was lost: what users decided is not forgotten with them."""
    for run_id in ("a", "b"):
        write_run(root, run_id)
    load_results(working, root)
    set_threshold(working, "text_features", "validation_mcc", 0.125)
    snapshot = tmp_path / "results.duckdb"
    publish(working, snapshot)
    working.unlink()
    forget_runs(working, ["b"], snapshot=snapshot)
    with duckdb.connect(str(working)) as con:
        assert con.execute("select run_id from runs").fetchall() == [("a",)]
        found = con.execute("select threshold from interest_thresholds where collection = 'text_features'").fetchall()
    assert (0.125,) in found


KILLED_LOADER = """
import os, signal, sys
from pathlib import Path
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import loading

insert, calls = loading._insert_fragment, []

def insert_and_die(*arguments):
    calls.append(arguments)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return insert(*arguments)

loading._insert_fragment = insert_and_die
loading.load_results(Path(sys.argv[1]), Location.open(sys.argv[2]))
"""


def test_a_killed_loader_leaves_whole_runs(root: Location, working: Path, tmp_path: Path) -> None:
    for run_id in ("a", "b"):
        write_run(root, run_id)
    killed = python(KILLED_LOADER, working, root.path, len(schemas.RESULT_KINDS) + 1)
    assert killed.wait(timeout=900) == -signal.SIGKILL
    # the first run was committed, the second was half inserted
    with duckdb.connect(str(working)) as con:
        assert con.execute("select distinct run_id from loaded_fragments").fetchall() == [("a",)]
        assert con.execute("select run_id from runs").fetchall() == [("a",)]
    report = load_results(working, root)
    assert (report.run_ids, report.rebuilt_from) == (("b",), None)
    load_results(tmp_path / "fresh.duckdb", root)
    assert contents(working) == contents(tmp_path / "fresh.duckdb")


def specs(**probing: object) -> str:
    """The specs of a run, as a run records them."""
    study = {
        "model": ModelSpec(id="tiny").model_dump(mode="json"),
        "collection": CollectionSpec(collection="text_features").model_dump(mode="json"),
        "extraction": ExtractionSpec().model_dump(mode="json"),
        "probing": ProbingSpec(**probing).model_dump(mode="json"),
    }
    return json.dumps(study, sort_keys=True)


def without(spec: str, part: str, name: str) -> str:
    """The specs as a version wrote them that had no field of that name, but one that is no longer known."""
    found = json.loads(spec)
    del found[part][name]
    found[part]["of_old"] = 1
    return json.dumps(found)


# What rankings are built from holds every run.
STAGING = ("kept_scores", "named_runs", "shortlisted_neurons", "ordered_neurons", "scored_fits", "ordered_fits")


def test_a_newer_version_of_a_run_takes_its_place_in_the_rankings_and_nothing_else_does(
    root: Location, working: Path, tmp_path: Path
) -> None:
    """Every feature stood twice in the rankings after an update."""
    earlier = without(without(specs(), "probing", "shortlist"), "extraction", "next_token")
    for run_id, spec in (("old", earlier), ("new", specs()), ("other", specs(seed=1))):
        write_run(root, run_id, features=("digit", "capital"))
        write_fragment(root, "runs", run_id, [{"spec": spec}])
        created = datetime(2026, 1, 1 if run_id == "old" else 2, tzinfo=UTC)
        manifest = (root / "results" / "runs" / run_id / "made.json").read_bytes()
        made = json.loads(manifest) | {"created_at": created.isoformat()}
        (root / "results" / "runs" / run_id / "made.json").write_bytes(json.dumps(made).encode())
    load_results(working, root)
    run_checks(working, ["old", "new", "other"], root)
    snapshot = tmp_path / "results.duckdb"
    publish(working, snapshot)
    with connect(snapshot) as con:
        found = con.execute("select run_id, superseded_by from named_runs order by run_id").fetchall()
        assert found == [("new", None), ("old", "new"), ("other", None)]
        views = [name for (name,) in con.execute("select view_name from duckdb_views() where not internal").fetchall()]
        for view in views:
            columns = [name for (name, *_) in con.execute(f"describe {view}").fetchall()]
            # What a superseded run was made from is asked before it is freed.
            staging = view in STAGING or view.startswith("check_") or view == "lineage"
            if "run_id" in columns and not staging:
                assert con.execute(f"select count(*) from {view} where run_id = 'old'").fetchall() == [(0,)], view
        assert {run.run_id for run in reads.runs(con)} == {"new", "other"}
        assert [(run.run_id, run.superseded_by) for run in reads.superseded_runs(con)] == [("old", "new")]
    forget_runs(working, ["old"])
    assert {row[0] for row in contents(working)["neuron_scores"]} == {"new", "other"}
    assert load_results(working, root).run_ids == ("old",)


def damaged(path: Path, share: float) -> None:
    """Flip a bit at a place of a file."""
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 16
    path.write_bytes(data)


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


def test_a_damaged_working_file_is_never_published_and_comes_back_with_all_it_held(
    root: Location, working: Path, tmp_path: Path
) -> None:
    """One flipped bit in the working database used to be copied over a good snapshot."""
    for run_id in ("a", "b"):
        write_run(root, run_id, features=tuple(f"feature-{i}" for i in range(100)))
    snapshot = tmp_path / "results.duckdb"
    load_results(working, root)
    run_checks(working, ["a", "b"], root)
    set_threshold(working, "latex", "validation_mcc", 0.5)
    publish(working, snapshot)
    before, good = contents(working), working.read_bytes()
    # Its fragments may be gone by now: what was published is known all the same.
    (root / "results").delete()
    places = []
    for share in (0.02, 0.2, 0.5, 0.6, 0.7, 0.8, 0.9):
        working.write_bytes(good)
        published = snapshot.read_bytes()
        damaged(working, share)
        try:
            publish(working, snapshot)
        except DamageError as damage:
            places.append(damage.path)
            assert snapshot.read_bytes() == published
            working_file.move_aside(working)
            load_results(working, root, snapshot=snapshot)
            publish(working, snapshot)
        # A bit of a block that holds nothing is no damage.
        assert contents(snapshot) == before
        with connect(snapshot) as con:
            assert con.execute("select count(*) > 0 from check_results").fetchall() == [(True,)]
            assert con.execute("select threshold from interest_thresholds where collection = 'latex'").fetchall() == [
                (0.5,)
            ]
    assert len(places) >= 4
    assert set(places) == {str(working)}


def test_checks_come_back_where_nothing_was_published(root: Location, working: Path) -> None:
    write_run(root, "a")
    load_results(working, root)
    n_checks = len(run_checks(working, ["a"], root))
    working.write_bytes(b"")
    working.write_bytes(b"not a database" * 1000)
    load_results(working, root)
    assert unchecked_runs(working) == ["a"]
    assert len(run_checks(working, unchecked_runs(working), root)) == n_checks
    assert unchecked_runs(working) == []


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
    others, leftover = (snapshot.parent / f".tmp-publish-results.duckdb-{name}" for name in ("other", "old"))
    for path in (others, leftover):
        path.write_bytes(b"half a copy")
    os.utime(leftover, (0, 0))
    publish(working, snapshot)
    # What another process is writing right now stays; what one left that was killed days ago goes.
    assert sorted(path.name for path in snapshot.parent.iterdir()) == [others.name, "published.json", "results.duckdb"]
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
        assert "Close the process that still writes to it" in caught.value.remedy
    _, errors = writer.communicate("\n", timeout=900)
    assert writer.returncode == 0, errors
    with connect(snapshot) as con:
        assert con.execute("select count(*) from runs").fetchall() == [(2,)]


READER = """
import sys
from sparse_probing.warehouse import connect, loading, reads
from sparse_probing.warehouse import working as working_file
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

    monkeypatch.setattr(working_file, "open_working", fails)
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
