"""Checkpoints are listed in order of training, and half-written ones are not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparse_probing.config import ModelSpec
from sparse_probing.errors import InputError
from sparse_probing.models.checkpoints import Checkpoint, list_checkpoints
from sparse_probing.models.sources import find_local
from tests.tiny import random_model


def test_subfolders_in_order_of_step(tmp_path: Path) -> None:
    for name in ("step1000", "step64", "notes"):
        random_model("llama").save_pretrained(tmp_path / name)
    (tmp_path / "step2000").mkdir()
    (tmp_path / "step2000" / "config.json").write_text("{}")
    shutil.copytree(tmp_path / "step1000", tmp_path / "step3000")
    os.truncate(tmp_path / "step3000" / "model.safetensors", 5000)
    assert list_checkpoints(ModelSpec(id=str(tmp_path))) == [Checkpoint("step64", 64), Checkpoint("step1000", 1000)]


def test_a_folder_that_begins_with_a_dot_is_still_being_written(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path / ".step-000002.unfinished")
    random_model("llama").save_pretrained(tmp_path / "step-000001")
    spec = ModelSpec(id=str(tmp_path))
    assert list_checkpoints(spec) == [Checkpoint("step-000001", 1)]
    # The one model in the folder.
    assert find_local(spec).path == tmp_path.resolve() / "step-000001"
    (tmp_path / "step-000001").rename(tmp_path / ".step-000001")
    with pytest.raises(InputError, match="holds no model"):
        find_local(spec)


def test_branches_and_tags_of_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    refs = SimpleNamespace(
        branches=[SimpleNamespace(name=name, target_commit="0" * 40) for name in ("main", "step3000", "step1")],
        tags=[SimpleNamespace(name="checkpoint-20", target_commit="1" * 40)],
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", lambda self, repository: refs)
    assert [checkpoint.step for checkpoint in list_checkpoints(ModelSpec(id="lab/model"))] == [1, 20, 3000]


def test_what_cannot_be_listed_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        list_checkpoints(ModelSpec(id=str(tmp_path / "nothing")))
