"""Streamed statistics equal those of all rows at once, however the rows are cut, merged or ordered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_probing.activations import Selection, extract
from sparse_probing.errors import DataError, InputError
from sparse_probing.neurons.statistics import NeuronStatistics, StatisticsCollector
from tests.tiny import random_model, random_sequences


def collected(values: np.ndarray, cuts: list[int], first: np.ndarray, last: np.ndarray) -> NeuronStatistics:
    collector = StatisticsCollector(first, last, n_bins=20)
    for part in np.split(values, cuts, axis=1):
        collector.update(torch.from_numpy(part))
    return collector.result()


@pytest.fixture
def values() -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.standard_normal((2, 300, 5)) * [1, 10, 0.1, 0, 3] + [0, 1000, 0, 2, -1]).astype(np.float32)


def check(found: NeuronStatistics, values: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    exact = values.astype(np.float64)
    assert found.n_rows == values.shape[1]
    np.testing.assert_allclose(found.mean, exact.mean(axis=1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.variance, exact.var(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.low, values.min(axis=1))
    np.testing.assert_array_equal(found.high, values.max(axis=1))
    np.testing.assert_allclose(found.sparsity, (values <= 0).mean(axis=1))
    assert (found.histogram.sum(axis=2) == values.shape[1]).all()
    for layer, neuron in np.ndindex(*first.shape):
        if last[layer, neuron] > first[layer, neuron]:
            wanted, edges = np.histogram(
                values[layer, :, neuron], bins=20, range=(first[layer, neuron], last[layer, neuron])
            )
            # A value on an edge may round to either side of it.
            near = np.abs(values[layer, :, neuron][:, None] - edges).min(axis=1) < 1e-4 * (edges[1] - edges[0])
            assert np.abs(found.histogram[layer, neuron] - wanted).sum() <= 2 * near.sum()


def test_any_cut_and_any_merge_gives_the_same(values: np.ndarray) -> None:
    first, last = values.min(axis=1), values.max(axis=1)
    check(collected(values, [], first, last), values, first, last)
    check(collected(values, [1, 2, 130], first, last), values, first, last)
    halves = [collected(part, [7], first, last) for part in np.split(values, [111], axis=1)]
    check(halves[0].merge(halves[1]), values, first, last)
    check(halves[1].merge(halves[0]), values, first, last)
    with pytest.raises(InputError, match="cannot be merged"):
        halves[0].merge(collected(values, [], first - 1, last))


def test_straight_from_a_model_without_storing_anything() -> None:
    model, sequences = random_model("gpt_neox"), random_sequences(20)
    sequence = np.repeat(np.arange(20), [len(tokens) for tokens in sequences])
    start = np.concatenate([np.arange(len(tokens)) for tokens in sequences])
    selection = Selection("none", sequence, start, start + 1)
    collector = StatisticsCollector(np.full((3, 48), -1.0), np.full((3, 48), 1.0), n_bins=20)
    whole = np.zeros((3, len(selection), 48), np.float32)
    for batch in extract(model, sequences, selection, batch_tokens=50):
        collector.update(batch.values["mlp.hook_post"])
        whole[:, batch.rows] = batch.values["mlp.hook_post"].numpy()
    found = collector.result()
    np.testing.assert_allclose(found.mean, whole.mean(axis=1, dtype=np.float64), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.variance, whole.astype(np.float64).var(axis=1), rtol=1e-6)


def test_what_is_not_finite_is_refused(values: np.ndarray) -> None:
    values[1, 5, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        collected(values, [], np.zeros((2, 5)), np.ones((2, 5)))
