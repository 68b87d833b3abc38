"""On a CUDA device: the numbers of the processor, copies that arrive whole, and the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_probing.activations import extract_dataset, extract_datasets
from sparse_probing.activations.capture import Capture, TokenBatch
from sparse_probing.config import ExtractionSpec
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.matrices import read_layer
from tests.tiny import random_sequences, save_tiny, write_dataset

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def exact_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(params=["gpt_neox", "llama", "bert"])
def resolved(request: pytest.FixtureRequest, tmp_path: Path) -> ResolvedModel:
    return save_tiny(tmp_path / "model", request.param)


def stored(folder: Location) -> np.ndarray:
    return np.stack([read_layer(folder, layer).values() for layer in read_manifest(folder).facts["layers"]])


@pytest.mark.parametrize("pooling", ["none", "mean", "max"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_parity_with_the_processor(
    tmp_path: Path, resolved: ResolvedModel, exact_float32: None, pooling: str, dtype: str
) -> None:
    sequences = random_sequences(200)
    labels = [(i, p) for i, s in enumerate(sequences) for p in ((1, len(s) - 1) if pooling == "none" else (None,))]
    dataset = write_dataset(tmp_path / "dataset", sequences, labels, pooling=pooling)
    spec = ExtractionSpec(storage_dtype=dtype, shard_tokens=200, batch_tokens=128, calibration_rows=60)
    cpu, cuda, again = (
        extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / name), device=device)
        for name, device in (("cpu", "cpu"), ("cuda", "cuda"), ("again", "cuda"))
    )
    found, wanted = stored(cuda), stored(cpu)
    if dtype == "float32":
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    else:
        step = (wanted.max(axis=1) - wanted.min(axis=1)) / 255
        assert (np.abs(found - wanted) <= 1.1 * step[:, None] + 1e-5).all()
        facts = read_manifest(cuda).facts
        assert facts["max_quantisation_error"] <= facts["quantisation_error_bound"]
    # Buffers are reused while copies are in the air: a copy that came late would show here.
    assert read_manifest(cuda).files == read_manifest(again).files
    assert read_manifest(cuda).facts["device"] == "cuda"


@pytest.mark.parametrize("model_dtype", ["bfloat16", "float16"])
def test_halves_of_float32_arrive_as_such(tmp_path: Path, resolved: ResolvedModel, model_dtype: str) -> None:
    """A model in half precision gives the processor's float32 numbers to within that precision, on every row."""
    sequences = random_sequences(120)
    dataset = write_dataset(tmp_path / "dataset", sequences, [(i, p) for i, s in enumerate(sequences) for p in (1, 3)])
    spec = ExtractionSpec(storage_dtype="float16", shard_tokens=100, batch_tokens=64)
    wanted = stored(extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "cpu"), device="cpu"))
    halved = replace(resolved, dtype=model_dtype)
    found = stored(extract_dataset(dataset, halved, spec, root=Location.open(tmp_path / "cuda"), device="cuda"))
    assert np.isfinite(found).all()
    # Three layers of rounding to 8 or 11 bits; a row that belongs elsewhere is off by far more.
    off = np.abs(found - wanted).mean(axis=2) / np.abs(wanted).mean(axis=2)
    assert off.max() < (0.15 if model_dtype == "bfloat16" else 0.03)


def test_a_batch_that_does_not_fit_is_halved(
    tmp_path: Path, resolved: ResolvedModel, exact_float32: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of the batches before it are in the air when memory runs out: the shard is run anew, and nothing is lost."""
    sequences = random_sequences(100)
    dataset = write_dataset(tmp_path / "dataset", sequences, [(i, p) for i, s in enumerate(sequences) for p in (1, 3)])
    spec = ExtractionSpec(storage_dtype="float32", shard_tokens=400, batch_tokens=128)
    wanted = stored(extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "whole"), device="cuda"))
    run, calls = Capture.run, 0

    def failing(self: Capture, batch: TokenBatch) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            # More than any device has: a real error of the allocator.
            torch.empty(1 << 44, dtype=torch.uint8, device="cuda")
        return run(self, batch)

    monkeypatch.setattr(Capture, "run", failing)
    folder = extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "halved"), device="cuda")
    assert 64 in read_manifest(folder).facts["batch_tokens"]
    np.testing.assert_allclose(stored(folder), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_several_hooks_and_chosen_neurons_in_one_pass(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(200)
    labels = [(i, p) for i, tokens in enumerate(sequences) for p in (1, len(tokens) - 1)]
    dataset = write_dataset(tmp_path / "dataset", sequences, labels)
    common = {"shard_tokens": 200, "batch_tokens": 128, "calibration_rows": 60}
    specs = [
        ExtractionSpec(**common),
        ExtractionSpec(hook="hook_resid_post", storage_dtype="float16", layers=(0, 2), **common),
        ExtractionSpec(neurons=((0, 5), (0, 47), (1, 3)), **common),
    ]
    together = extract_datasets(dataset, resolved, specs, root=Location.open(tmp_path / "one"), device="cuda")
    for folder, spec in zip(together, specs, strict=True):
        alone = extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path / "alone"), device="cuda")
        assert read_manifest(folder).files == read_manifest(alone).files
    for layer in (0, 1):
        some, whole = read_layer(together[2], layer), read_layer(together[0], layer)
        np.testing.assert_array_equal(some.codes, whole.codes[:, some.neurons])
