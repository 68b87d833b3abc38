"""The estimate is what the extraction then takes, and what cannot fit is refused with what would."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GPTNeoXModel

from sparse_probing.activations import estimate as estimating
from sparse_probing.activations import extract_dataset
from sparse_probing.activations.estimate import check_space, estimate
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import InputError
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from tests.tiny import random_sequences, save_tiny, write_dataset


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_counts_are_those_of_the_extraction(tmp_path: Path, resolved: ResolvedModel, dtype: str) -> None:
    sequences = random_sequences(30)
    dataset = write_dataset(tmp_path / "dataset", sequences, [(i, 2) for i in range(0, 30, 2)])
    spec = ExtractionSpec(storage_dtype=dtype, layers=(0, 2), shard_tokens=50, batch_tokens=64)
    cost = estimate(dataset, resolved, spec, trial_tokens=64)
    facts = read_manifest(extract_dataset(dataset, resolved, spec, root=Location.open(tmp_path))).facts
    for name in ("n_sequences", "n_tokens", "n_rows", "n_neurons"):
        assert getattr(cost, name) == facts[name]
    assert cost.n_layers == 2
    item_bytes = {"uint8": 1, "float32": 4}[dtype]
    assert cost.layer_bytes == 15 * 48 * item_bytes
    assert cost.stored_bytes == 2 * cost.layer_bytes
    assert (cost.staged_bytes > 0) == (dtype == "uint8")
    assert cost.seconds == pytest.approx(cost.n_tokens / cost.tokens_per_second)
    check_space(cost, Location.open(tmp_path / "not" / "there"), spec)


def test_what_cannot_fit_is_refused_with_what_would(
    tmp_path: Path, resolved: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_sequences(30), [(i, 2) for i in range(30)])
    spec = ExtractionSpec(storage_dtype="float32")
    cost = estimate(dataset, resolved, spec, trial_tokens=0)
    assert cost.seconds is None
    root = Location.open(tmp_path)
    for free, remedy in ((cost.disk_bytes // 2, "uint8"), (cost.disk_bytes // 2, "at most"), (10, "Free space")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        with pytest.raises(InputError, match="of disk") as caught:
            check_space(cost, root, spec if remedy == "uint8" else ExtractionSpec())
        assert remedy in caught.value.remedy
    monkeypatch.undo()
    with pytest.raises(InputError, match="of memory"):
        check_space(replace(cost, host_bytes=1 << 60), root, spec)


@pytest.mark.parametrize(
    ("seconds_a_token", "most_tokens"),
    [(0.0, 10_000), (0.01, 2000), (0.1, 200), (10.0, 2 * 16)],
    ids=["fast", "slow", "slower", "one sequence is too long"],
)
def test_the_trial_ends_in_time_on_a_slow_machine(
    tmp_path: Path,
    resolved: ResolvedModel,
    monkeypatch: pytest.MonkeyPatch,
    seconds_a_token: float,
    most_tokens: int,
) -> None:
    """By a clock that goes on by the tokens that the model is given, and by nothing else."""
    now, run = 0.0, 0
    forward = GPTNeoXModel.forward

    def counted(self: GPTNeoXModel, input_ids: torch.Tensor, **others: object) -> object:
        nonlocal now, run
        now += 1e-6 + seconds_a_token * input_ids.numel()
        run += input_ids.numel()
        return forward(self, input_ids, **others)

    monkeypatch.setattr(GPTNeoXModel, "forward", counted)
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: now)
    dataset = write_dataset(tmp_path / "dataset", random_sequences(600), [(i, 2) for i in range(600)])
    cost = estimate(dataset, resolved, ExtractionSpec())
    assert run <= most_tokens
    # The gauge alone may take longer than the limit where sixteen tokens do.
    assert now <= max(estimating.TRIAL_SECONDS, 2 * 16 * seconds_a_token + 1e-3)
    if seconds_a_token:
        assert cost.tokens_per_second == pytest.approx(1 / seconds_a_token, rel=0.01)


def test_one_slow_pass_does_not_spoil_the_gauge(
    tmp_path: Path, resolved: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other work held up the second of all passes."""
    now, passes = 0.0, 0
    forward = GPTNeoXModel.forward

    def counted(self: GPTNeoXModel, input_ids: torch.Tensor, **others: object) -> object:
        nonlocal now, passes
        passes += 1
        now += 0.001 * input_ids.numel() + (0.9 if passes == 2 else 0.0)
        return forward(self, input_ids, **others)

    monkeypatch.setattr(GPTNeoXModel, "forward", counted)
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: now)
    dataset = write_dataset(tmp_path / "dataset", random_sequences(60), [(i, 2) for i in range(60)])
    assert estimate(dataset, resolved, ExtractionSpec()).tokens_per_second == pytest.approx(1000, rel=0.01)
