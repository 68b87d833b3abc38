"""What a scan says of checkpoints: complete, studied or why not, in which order, and under which key."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from sparse_probing import run_study, scanning
from sparse_probing.config import (
    CheckpointsSpec,
    CollectionSpec,
    ExtractionSpec,
    ModelSpec,
    ProbingSpec,
    StudySpec,
    load_profile,
)
from sparse_probing.errors import InputError
from sparse_probing.models.checkpoints import look
from sparse_probing.settings import Settings


def study_of(folder: Path, **fields: object) -> StudySpec:
    return StudySpec(
        name="series",
        models=(ModelSpec(id="ignored", name="tiny", dtype="float32"),),
        checkpoints=CheckpointsSpec(folder=str(folder), **fields),
        collections=(
            CollectionSpec(collection="natural_lang_id", context_length=48, options={"sequences_per_class": 24}),
        ),
        extraction=ExtractionSpec(shard_tokens=1024, calibration_rows=64),
        probing=ProbingSpec(k_values=(1, 2), n_bootstrap=20, n_permutations=10),
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    data = tmp_path / "data"
    data.mkdir()
    return Settings(data_uri=str(data), local_dir=data, device="cpu")


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """Two whole checkpoints, one half-written, one whose name gives no step, and one that is being copied."""
    folder = tmp_path / "checkpoints"
    for name in ("step10", "step0", "step200", "final", ".step300"):
        shutil.copytree(tiny_model, folder / name)
    weights = folder / "step200" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    return folder


def test_a_checkpoint_counts_when_it_is_whole_and_is_studied_when_it_is_published(
    folder: Path, settings: Settings, tiny_model: Path
) -> None:
    study = study_of(folder)
    found = scanning.scan(study, settings, settle_seconds=0)
    assert [(one.revision, one.training_step, one.complete, one.studied) for one in found] == [
        ("step0", 0, True, False),
        ("step10", 10, True, False),
        ("step200", 200, False, False),
        ("final", None, False, False),
    ]
    assert [one.reason for one in found[:2]] == ["new", "new"]
    assert "model.safetensors" in found[2].reason
    assert "training step" in found[3].reason
    assert [one.revision for one in scanning.in_order(study, found)] == ["step10", "step0"]
    oldest = study_of(folder, order="oldest")
    assert [one.revision for one in scanning.in_order(oldest, found)] == ["step0", "step10"]
    of_first = found[0].study
    assert of_first is not None
    assert of_first.models == (
        ModelSpec(id=str(folder), name="tiny", dtype="float32", revision="step0", training_step=0),
    )
    run_study(of_first, data=settings.data_uri, say=lambda line: None)
    # What was incomplete is completed later.
    shutil.copy(tiny_model / "model.safetensors", folder / "step200" / "model.safetensors")
    again = scanning.scan(study, settings, settle_seconds=0)
    assert [(one.revision, one.studied, one.reason) for one in again[:3]] == [
        ("step0", True, ""),
        ("step10", False, "new"),
        ("step200", False, "new"),
    ]
    # All that are complete are the models of one study.
    assert [model.revision for model in scanning.expanded(study).models] == ["step0", "step10", "step200"]


def test_the_key_changes_with_the_files_and_with_the_study_and_with_nothing_else(
    folder: Path, settings: Settings
) -> None:
    def keys(study: StudySpec) -> dict[str, str]:
        return {one.revision: one.key for one in scanning.scan(study, settings, settle_seconds=0)}

    study = study_of(folder)
    before = keys(study)
    assert before == keys(study_of(folder, order="oldest", at_once=4, every=5))
    assert before == keys(study.model_copy(update={"description": "words"}))
    other = study.model_copy(update={"probing": ProbingSpec(k_values=(1,))})
    assert all(before[name] != keys(other)[name] for name in ("step0", "step10"))
    assert scanning.series_digest(study) != scanning.series_digest(other)
    assert scanning.series_digest(study) == scanning.series_digest(study_of(folder, at_once=4))
    (folder / "step10" / "config.json").touch()
    after = keys(study)
    assert after["step0"] == before["step0"]
    assert after["step10"] != before["step10"]
    assert before["step200"] == ""


def test_what_changes_between_two_looks_does_not_count(folder: Path, settings: Settings) -> None:
    writer = threading.Timer(0.3, (folder / "step10" / "config.json").touch)
    writer.start()
    found = {one.revision: one for one in scanning.scan(study_of(folder), settings, settle_seconds=1.5)}
    writer.join()
    assert found["step0"].is_new
    assert not found["step10"].complete
    assert "changed" in found["step10"].reason
    assert found["step10"].study is None


def test_pattern_and_distance(tmp_path: Path) -> None:
    for step in (0, 1, 2, 4, 8, 16, 32):
        (tmp_path / f"step{step}").mkdir()
    (tmp_path / "checkpoint-5").mkdir()

    def names(**fields: object) -> list[str]:
        return [one.name for one in look(CheckpointsSpec(folder=str(tmp_path), **fields))]

    assert names(pattern="step*", every=4) == ["step0", "step4", "step8", "step16", "step32"]
    # One more does not change which of the others are taken.
    (tmp_path / "step64").mkdir()
    assert names(pattern="step*", every=4) == ["step0", "step4", "step8", "step16", "step32", "step64"]
    assert names(pattern="step?") == ["step0", "step1", "step2", "step4", "step8"]
    assert names()[4:6] == ["checkpoint-5", "step8"]


def test_hub_revisions_are_pinned_to_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    refs = SimpleNamespace(
        branches=[SimpleNamespace(name=name, target_commit=f"{name}-commit") for name in ("main", "step3000", "step1")],
        tags=[],
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", lambda self, repository: refs)
    seen = look(CheckpointsSpec(hub="lab/model"))
    assert [(one.name, one.step, one.revision) for one in seen] == [
        ("step1", 1, "step1-commit"),
        ("step3000", 3000, "step3000-commit"),
    ]


def test_what_is_wrong_is_said(tmp_path: Path, settings: Settings) -> None:
    study = study_of(tmp_path / "nothing")
    with pytest.raises(InputError, match="is not there"):
        scanning.scan(study, settings)
    (tmp_path / "nothing" / "step5").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no complete checkpoint .*step5"):
        scanning.expanded(study)
    plain = study.model_copy(update={"checkpoints": None})
    assert scanning.expanded(plain) is plain
    with pytest.raises(InputError, match=r"no section \[checkpoints\]"):
        scanning.scan(plain, settings)
    with pytest.raises(ValidationError, match="either folder or hub"):
        CheckpointsSpec(folder="a", hub="b/c")
    with pytest.raises(ValidationError, match="of one model"):
        StudySpec.model_validate(study.model_dump() | {"models": [{"id": "a"}, {"id": "b"}]})


def test_a_relative_folder_is_beside_the_profile(tmp_path: Path) -> None:
    profile = tmp_path / "series.toml"
    profile.write_text(
        'name = "series"\n[[models]]\nid = "runs"\n[checkpoints]\nfolder = "runs"\n'
        '[[collections]]\ncollection = "text_features"\n',
        encoding="utf-8",
    )
    study = load_profile(str(profile))
    assert study.checkpoints is not None
    assert study.checkpoints.folder == str(tmp_path / "runs")
