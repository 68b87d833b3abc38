"""On a CUDA device: what is collected there equals what an extraction stores there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_probing.activations import extract_dataset
from sparse_probing.config import ExtractionSpec
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.neurons import collect
from sparse_probing.probes.single.counts import LevelCounts, count_levels
from sparse_probing.store.filesystem import Location
from sparse_probing.store.matrices import iterate_layers
from sparse_probing.store.parquet import read_table
from tests.tiny import random_sequences, save_tiny, write_dataset

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SPEC = ExtractionSpec(shard_tokens=400, batch_tokens=128, calibration_rows=100)


@pytest.fixture(params=["gpt_neox", "llama"])
def resolved(request: pytest.FixtureRequest, tmp_path: Path) -> ResolvedModel:
    return save_tiny(tmp_path / "model", request.param)


def test_collected_equals_stored(tmp_path: Path, resolved: ResolvedModel) -> None:
    sequences = random_sequences(100)
    labels = [(i, p) for i, tokens in enumerate(sequences) for p in range(1, len(tokens), 2)]
    dataset, root = write_dataset(tmp_path / "dataset", sequences, labels), Location.open(tmp_path)
    done = collect(dataset, resolved, SPEC, n_contexts=5, device="cuda")
    assert done.statistics is not None
    assert done.contexts is not None
    floats = SPEC.model_copy(update={"storage_dtype": "float32"})
    folder = extract_dataset(dataset, resolved, floats, root=root, device="cuda")
    values = np.stack([layer.codes for layer in iterate_layers(folder)])
    np.testing.assert_allclose(done.statistics.mean, values.mean(axis=1, dtype=np.float64), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(done.statistics.variance, values.astype(np.float64).var(axis=1), rtol=1e-6)
    assert (done.statistics.histogram.sum(axis=-1) == len(labels)).all()
    rows = read_table(folder / "rows.parquet")
    first = np.unique(rows.column("seq_id").to_numpy(), return_index=True)[1]
    best = -np.sort(-np.maximum.reduceat(values, first, axis=1), axis=1)[:, :5].transpose(0, 2, 1)
    np.testing.assert_allclose(done.contexts.values, best, rtol=1e-5, atol=1e-7)
    folder = extract_dataset(dataset, resolved, SPEC, root=root, device="cuda")
    split = np.array([("train", "validation", "test").index(name) for name in rows.column("split").to_pylist()])
    signs = np.array([1 if i % 2 else -1 for i in range(len(labels))], dtype=np.int8)
    for layer in iterate_layers(folder):
        wanted = count_levels(layer.codes, signs, split.astype(np.int8), offset=layer.offset, scale=layer.scale)[0]
        np.testing.assert_array_equal(LevelCounts(**done.counts("feature", layer.layer)).counts, wanted.counts)
