"""A whole study whose data folder is a bucket: the files of a local folder, in few requests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_probing import load_profile, plan_study, run_study
from sparse_probing.settings import load_settings
from sparse_probing.store import object_stores
from sparse_probing.warehouse import connect
from tests.integration.test_run_study import ARTIFACTS, artifact_files
from tests.object_store import ObjectStore, Way

ROOT = Path(__file__).parents[2]


def test_a_study_in_a_bucket(
    object_store: ObjectStore, tiny_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_PROBING_LOCAL", str(tmp_path / "databases"))
    object_store.make_bucket("study")
    data = object_store.uri("study/a/prefix")
    before = len(object_store.requests())
    runs = run_study(tiny_profile, data=data, say=lambda line: None)
    requests = object_store.requests()[before:]
    assert len(requests) < 500
    assert (tmp_path / "databases" / "results.duckdb").is_file()

    local = run_study(tiny_profile, data=tmp_path / "local", say=lambda line: None)
    assert runs == local
    expected = artifact_files(tmp_path / "local")
    found = {
        key.removeprefix("a/prefix/"): content
        for key, content in object_store.objects("study").items()
        if key.split("/")[2] in ARTIFACTS and "/times-" not in key and not key.endswith("/made.json")
    }
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    # A write makes no folder. pyarrow makes one above what it deletes: unfinished work, which lies in folders of its own.
    puts = [request.split()[1] for request in requests if request.startswith("PUT ")]
    made = {path.partition("a/prefix/")[2] for path in puts if path.endswith("/")}
    assert all(folder == "results/_running/" or folder.startswith("activations/") for folder in made)
    assert len(made) <= 3

    before = len(object_store.requests())
    assert run_study(tiny_profile, data=data, say=lambda line: None) == runs
    assert plan_study(load_profile(str(tiny_profile)), load_settings(data)).is_finished
    assert len(object_store.requests()) - before < 100

    # As another process sees it, which has read nothing yet.
    before = len(object_store.requests())
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "--data", data, "status", "--profile", str(tiny_profile)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing" not in done.stdout
    assert "partial" not in done.stdout
    assert len(object_store.requests()) - before < 80


def test_a_study_goes_on_when_the_store_comes_back(
    object_store: ObjectStore, tiny_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_PROBING_LOCAL", str(tmp_path))
    object_store.make_bucket("outage")
    way = Way(object_store.port)
    object_stores.opened.cache_clear()

    def say(line: str) -> None:
        # After a dataset was made, and after the activations.
        if line.startswith(("Dataset", "Activations")):
            way.refuse(6)

    try:
        data = object_store.uri("outage", port=way.port)
        runs = run_study(tiny_profile, data=data, say=say)
        assert way.n_left == 0
        assert plan_study(load_profile(str(tiny_profile)), load_settings(data)).run_ids == list(runs)
    finally:
        way.close()


def test_studies_of_several_machines_end_in_one_database(
    object_store: ObjectStore, tiny_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_store.make_bucket("shared")
    monkeypatch.setenv("SPARSE_PROBING_DATA", object_store.uri("shared/data"))
    monkeypatch.setenv("SPARSE_PROBING_LOCAL", str(tmp_path / "one"))
    study = load_profile(str(tiny_profile))
    runs = run_study(study, say=lambda line: None)

    def published() -> set[str]:
        with connect() as results:
            return {run_id for (run_id,) in results.execute("select run_id from runs").fetchall()}

    # Another machine, which has published nothing, finds the database, and the study finished.
    monkeypatch.setenv("SPARSE_PROBING_LOCAL", str(tmp_path / "other"))
    shutil.copytree(tmp_path / "one" / "models", tmp_path / "other" / "models")
    assert published() == set(runs)
    assert not (tmp_path / "other" / "working.duckdb").exists()
    assert plan_study(study).is_finished
    # It adds runs of its own: the latest database has those of both.
    other = study.model_copy(update={"probing": study.probing.model_copy(update={"k_values": (1,)})})
    added = run_study(other, say=lambda line: None)
    assert not set(added) & set(runs)
    monkeypatch.setenv("SPARSE_PROBING_LOCAL", str(tmp_path / "one"))
    assert published() == {*runs, *added}
