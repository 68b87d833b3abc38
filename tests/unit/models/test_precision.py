from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_probing.config import ModelSpec
from sparse_probing.models import loading, precision
from sparse_probing.models.loading import load_model, resolve_model
from sparse_probing.store.filesystem import Location
from tests.tiny import random_model


def half(folder: Path) -> ModelSpec:
    random_model("llama").to(torch.bfloat16).save_pretrained(folder)
    return ModelSpec(id=str(folder))


def test_the_stored_dtype_is_that_of_most_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(9, dtype=torch.float16), "b": torch.ones(2)}, tmp_path / "x.safetensors")
    assert precision.stored_dtype([tmp_path / "x.safetensors"]) == "float16"
    save_file({"a": torch.ones(9, dtype=torch.float64)}, tmp_path / "y.safetensors")
    assert precision.stored_dtype([tmp_path / "y.safetensors"]) == "float32"


@pytest.mark.parametrize(("ratio", "expected"), [(0.2, "float32"), (1.0, "bfloat16"), (3.0, "bfloat16")])
def test_auto_is_the_stored_dtype_where_the_device_is_as_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, expected: str
) -> None:
    monkeypatch.setattr(precision, "speed_ratio", lambda dtype, device: ratio)
    spec = half(tmp_path / "model")
    assert spec.dtype == "auto"
    resolved = resolve_model(spec, models_dir=tmp_path / "models", device="cpu")
    assert resolved.dtype == expected
    assert next(load_model(resolved).parameters()).dtype == getattr(torch, expected)


def test_float32_weights_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "fastest_dtype", lambda *_: pytest.fail("measured"))
    random_model("llama").save_pretrained(tmp_path / "model")
    assert resolve_model(ModelSpec(id=str(tmp_path / "model")), models_dir=tmp_path / "models").dtype == "float32"


def test_the_first_choice_in_a_data_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine that shares the folder would choose otherwise, and must not."""
    spec = half(tmp_path / "model")
    root = Location.open(tmp_path / "data")
    found = []
    for ratio in (0.2, 5.0):
        monkeypatch.setattr(precision, "speed_ratio", lambda dtype, device, ratio=ratio: ratio)
        resolved = resolve_model(
            spec,
            models_dir=tmp_path / f"models-{ratio}",
            device="cpu",
            keep_first=lambda name, decide: (root / "choices" / name).keep_first(decide),
        )
        found.append(resolved.dtype)
    assert found == ["float32", "float32"]
    given = resolve_model(spec.model_copy(update={"dtype": "bfloat16"}), models_dir=tmp_path / "models")
    assert given.dtype == "bfloat16"


def test_the_ratio_is_measured() -> None:
    assert precision.speed_ratio("float32", "cpu") == 1.0
    assert 0.01 < precision.speed_ratio("bfloat16", "cpu") < 100


def test_a_slow_choice_by_hand_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "speed_ratio", lambda dtype, device: {"bfloat16": 0.25, "float16": 1.5}[dtype])
    models = [ModelSpec(id="a", dtype=name) for name in ("auto", "float32", "bfloat16", "float16")]
    (line,) = precision.slow_choices(models, "cpu")
    assert "bfloat16" in line
    assert "0.25" in line
    assert "auto" in line
