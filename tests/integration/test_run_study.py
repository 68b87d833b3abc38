"""`run_study`: a whole study in this process leaves the files of the Prefect flow, byte for byte, and resumes."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from sparse_probing import run_study
from sparse_probing.config import load_profile
from sparse_probing.errors import InputError
from sparse_probing.runs import stages
from sparse_probing.schemas import VOLATILE_COLUMNS
from sparse_probing.store.filesystem import Location
from sparse_probing.studying import StudyRuns

ARTIFACTS = ("datasets", "activations", "results")


def artifact_files(data: Path) -> dict[str, bytes]:
    """Every file of every artifact, by its path below the data folder; when it was made, and the seconds of fits, are left out."""
    return {
        str(path.relative_to(data)): path.read_bytes()
        for folder in ARTIFACTS
        for path in (data / folder).rglob("*")
        if path.is_file() and not path.name.startswith("times-") and path.name != "made.json"
    }


def modified(data: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in ARTIFACTS for path in (data / folder).rglob("*.*")}


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook") / "data"


@pytest.fixture(scope="module")
def runs(data: Path, said: list[str], tiny_profile: Path) -> StudyRuns:
    return run_study(tiny_profile, data=data, say=said.append)


def test_the_files_equal_those_of_the_flow(
    runs: StudyRuns, data: Path, tmp_path: Path, cli, tiny_profile: Path
) -> None:
    done = cli("study", "--profile", str(tiny_profile), data=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    mine, flows = artifact_files(data), artifact_files(tmp_path)
    assert sorted(mine) == sorted(flows)
    assert [name for name in mine if mine[name] != flows[name]] == []
    assert sum("/runs/" in name for name in mine) >= len(runs) == 2
    # And this function finds what the flow made.
    before = modified(tmp_path)
    assert run_study(load_profile(str(tiny_profile)), data=tmp_path, say=lambda line: None) == runs
    assert modified(tmp_path) == before


def test_a_second_call_computes_nothing(
    runs: StudyRuns, data: Path, tiny_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = modified(data)
    expected = runs.table()
    monkeypatch.setattr(stages, "probe_layer", None)
    said: list[str] = []
    again = run_study(str(tiny_profile), data=data, say=said.append)
    assert [line for line in said if line.startswith("Run ") and " was there: " not in line] == []
    assert again == runs
    assert modified(data) == before
    stable = [name for name in expected.column_names if name not in VOLATILE_COLUMNS]
    assert again.table().select(stable).equals(expected.select(stable))


def test_what_is_missing_or_damaged_is_made_anew(
    runs: StudyRuns, data: Path, tmp_path: Path, tiny_profile: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    copy = tmp_path / "data"
    shutil.rmtree(copy / "results" / "runs" / runs[0])
    stored = next((copy / "activations").rglob("layer=01/*.parquet"))
    stored.write_bytes(stored.read_bytes()[:-1])
    said: list[str] = []
    assert run_study(tiny_profile, data=copy, say=said.append) == runs
    mine, expected = artifact_files(copy), artifact_files(data)
    assert [name for name in expected if expected[name] != mine[name]] == []
    assert any(line.startswith("Warning: ") and "made anew" in line for line in said)


def test_a_damaged_database_is_built_anew(runs: StudyRuns, data: Path, tmp_path: Path, tiny_profile: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    working = copy / "working.duckdb"
    content = bytearray(working.read_bytes())
    content[len(content) // 4 :] = bytes(len(content) - len(content) // 4)
    working.write_bytes(content)
    said: list[str] = []
    again = run_study(tiny_profile, data=copy, say=said.append)
    assert any("results database" in line or "built anew" in line for line in said)
    stable = [name for name in again.table().column_names if name not in VOLATILE_COLUMNS]
    assert again.table().select(stable).equals(runs.table().select(stable))


def test_runs_show_themselves_on_one_screen(runs: StudyRuns, data: Path, said: list[str]) -> None:
    table = runs.table()
    assert {"feature", "layer", "neuron", "test_mcc", "q_value"} <= set(table.column_names)
    assert set(table.column("run_id").to_pylist()) == set(runs)
    shown = repr(runs).splitlines()
    assert shown[0].startswith("2 runs in ")
    assert shown[1].split()[:4] == ["model", "feature", "layer", "neuron"]
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 160
    assert runs._repr_html_().startswith("<p>2 runs in ")
    with runs.connect() as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (2,)
    elsewhere = StudyRuns(runs, data / "nothing.duckdb")
    assert "No published results" in repr(elsewhere)
    assert len(said) < 30
    assert said[0].startswith("Model tiny-neox")
    assert said[-1].startswith("Published ")


def test_what_cannot_run_is_refused_first(tmp_path: Path, tiny_profile: Path) -> None:
    profile = tmp_path / "odd.toml"
    profile.write_text(tiny_profile.read_text().replace('"text_features"', '"text_feature"'), encoding="utf-8")
    with pytest.raises(InputError, match="text_features"):
        run_study(profile, data=tmp_path / "data")
    assert not (tmp_path / "data" / "datasets").exists()


def test_no_file_is_read_more_often_than_its_steps_need(
    tiny_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    read = Location.read_bytes

    def counted(location: Location) -> bytes:
        reads[location.path.removeprefix(f"{tmp_path}/")] += 1
        return read(location)

    monkeypatch.setattr(Location, "read_bytes", counted)
    runs = run_study(tiny_profile, data=tmp_path, say=lambda line: None)
    first = Counter(reads)
    with runs.connect() as connection:
        best = connection.execute(
            "select count(distinct layer) from best_neuron_per_feature group by run_id"
        ).fetchall()
    tables = {path: n for path, n in first.items() if path.endswith(".parquet")}
    # Checked, extracted and probed: three steps that may run on three machines.
    for name in ("labels", "sequences"):
        assert [n for path, n in tables.items() if path.endswith(f"{name}.parquet")] == [3, 3]
    assert {n for path, n in tables.items() if path.endswith("/rows.parquet")} == {1}
    # Each layer once, and once more where costlier methods are fitted on it.
    stored = {path: n for path, n in tables.items() if (tmp_path / path).is_file() and "/layer=" in path}
    assert set(stored.values()) <= {1, 2}
    assert len({path.rpartition("/")[0] for path, n in stored.items() if n == 2}) == sum(n for (n,) in best)
    # A layer's results are read once, when the run is finished, and a fragment once, when it is loaded.
    assert {n for path, n in tables.items() if "_running" in path and "times-" not in path} == {1}
    assert {n for path, n in tables.items() if path.startswith("results/") and "_running" not in path} == {1}
    reads.clear()
    assert run_study(tiny_profile, data=tmp_path, say=lambda line: None) == runs
    assert [path for path in reads if path.endswith(".parquet")] == []
