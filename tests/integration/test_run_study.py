"""`run_study`: a whole study in this process leaves the files of the Prefect flow, byte for byte, and resumes."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sparse_probing import run_study
from sparse_probing.config import ModelSpec, load_profile
from sparse_probing.errors import DataError, InputError
from sparse_probing.planning import plan_study
from sparse_probing.runs import stages
from sparse_probing.schemas import VOLATILE_COLUMNS
from sparse_probing.settings import DATA_VARIABLE
from sparse_probing.store.filesystem import Location
from sparse_probing.studying import StudyRuns
from sparse_probing.warehouse import connect
from sparse_probing.warehouse.publishing import Publisher
from tasks.freeing import find_freeable, free

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


def test_every_run_leads_to_its_dataset_and_sizes_are_those_of_the_files(runs: StudyRuns, data: Path) -> None:
    with runs.connect() as connection:
        found = connection.execute(
            "select run_id, count(distinct path) filter (where kind = 'dataset'), max(depth), min(input_name is not null) "
            "from lineage group by run_id order by run_id"
        ).fetchall()
        artifacts = connection.execute("select path, kind, state, n_files, bytes, seconds from artifacts").fetchall()
    assert found == [(run_id, 1, 2, True) for run_id in sorted(runs)]
    assert sorted(kind for _, kind, *_ in artifacts) == ["activations"] * 2 + ["dataset"] * 2 + ["run"] * 2
    for path, kind, state, n_files, size, seconds in artifacts:
        folders = [*(data / "results").glob(f"*/{path.rsplit('/', 1)[-1]}")] if kind == "run" else [data / path]
        files = [file for folder in folders for file in folder.rglob("*.parquet") if not file.name.startswith("times-")]
        assert (n_files, size) == (len(files), sum(file.stat().st_size for file in files)), path
        assert state == "finished"
        assert seconds > 0


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


def test_activations_of_published_runs_can_be_freed_and_come_back_for_other_probes(
    runs: StudyRuns, data: Path, tmp_path: Path, tiny_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    monkeypatch.setenv(DATA_VARIABLE, str(copy))
    study = load_profile(str(tiny_profile))
    before = artifact_files(copy)
    assert find_freeable() == []
    # A run that was interrupted may need any of them.
    part = copy / "results" / "_running" / ("0" * 16) / "layer-00"
    part.mkdir(parents=True)
    assert find_freeable(activations=True) == []
    shutil.rmtree(copy / "results" / "_running")
    found = find_freeable(activations=True)
    assert [one.why for one in found] == ["every run of it is published"] * len(study.collections)
    free(found)
    left = [name for name in artifact_files(copy) if name.startswith("activations/")]
    assert [name.rsplit("/", 1)[-1] for name in left] == ["freed.json"] * len(study.collections)
    plan = plan_study(study)
    assert plan.is_finished
    assert {one.state for pair in plan.pairs for one in pair.activations} == {"freed"}
    with runs.connect() as connection:
        known = dict(connection.execute("select path, bytes from artifacts").fetchall())
    with connect(copy / "results.duckdb") as connection:
        told = connection.execute("select path, state, bytes from artifacts where kind = 'activations'").fetchall()
    assert [(state, size == known[path]) for path, state, size in told] == [("freed", True)] * len(study.collections)
    assert run_study(study, data=copy, say=lambda line: None) == runs
    assert find_freeable(activations=True) == []
    # What is gone without having been freed is made anew, also where its run is finished.
    whole = copy / str(plan.pairs[0].activations[0].path)
    shutil.rmtree(whole)
    assert not plan_study(study).is_finished
    assert run_study(study, data=copy, say=lambda line: None) == runs
    assert (whole / "manifest.json").is_file()
    # Other probes need them: the same bytes again, and other runs beside those that were.
    other = study.model_copy(update={"probing": study.probing.model_copy(update={"k_values": (1,)})})
    assert not plan_study(other).pairs[1].is_extracted
    assert not set(run_study(other, data=copy, say=lambda line: None)) & set(runs)
    after = artifact_files(copy)
    assert [name for name in before if before[name] != after.get(name)] == []


def test_models_before_one_that_fails_are_published_and_a_study_publishes_once(
    runs: StudyRuns, data: Path, tmp_path: Path, tiny_model: Path, tiny_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, other = tmp_path / "data", tmp_path / "other"
    shutil.copytree(data, copy)
    shutil.copytree(tiny_model, other)
    weights = safetensors.torch.load_file(tiny_model / "model.safetensors")
    name = next(name for name in weights if "layers.1.mlp" in name and name.endswith("weight"))
    safetensors.torch.save_file(
        weights | {name: torch.full_like(weights[name], float("nan"))}, other / "model.safetensors", {"format": "pt"}
    )
    study = load_profile(str(tiny_profile))
    study = study.model_copy(
        update={"models": (*study.models, ModelSpec(id=str(other), name="other", dtype="float32"))}
    )
    published: list[Path] = []
    publish = Publisher.publish
    monkeypatch.setattr(Publisher, "publish", lambda self: published.append(publish(self)) or published[-1])
    with pytest.raises(DataError, match="not finite numbers"):
        run_study(study, data=copy, say=lambda line: None)
    assert len(published) == 1
    with connect(copy / "results.duckdb") as connection:
        found = {run_id for (run_id,) in connection.execute("select run_id from runs").fetchall()}
    assert found == set(runs)
    # Mended, both are published in one go.
    safetensors.torch.save_file(
        weights | {name: weights[name].flip(0).contiguous()}, other / "model.safetensors", {"format": "pt"}
    )
    both = run_study(study, data=copy, say=lambda line: None)
    assert len(both) == 2 * len(runs)
    assert len(published) == 2


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
