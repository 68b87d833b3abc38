"""Level counts equal a count of encoded rows by hand, whatever the batches, and differ for no unlabelled row."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_probing.activations.quantisation import Ranges, encode, ranges_from_extremes
from sparse_probing.errors import DataError, InputError
from sparse_probing.neurons.level_counts import LevelCollector, LevelTables
from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.single.counts import LevelCounts, count_levels

N_LAYERS, N_NEURONS, N_FEATURES = 2, 3, 3
NAMES = tuple("abc")


def some_ranges() -> Ranges:
    """Narrower than the values are; the last neuron was constant in training."""
    low = np.full((N_LAYERS, N_NEURONS), -1, np.float32)
    high = np.array([[1.5, 0.7, -1.0]] * N_LAYERS, np.float32)
    return ranges_from_extremes(low, high, (low + high) / 2)


def collected(
    values: np.ndarray, labels: np.ndarray, split: np.ndarray, parts: list[np.ndarray], ranges: Ranges
) -> LevelTables:
    collector = LevelCollector(ranges, NAMES, labels, split)
    for rows in parts:
        collector.update(torch.from_numpy(values[:, rows]), rows.astype(np.int64))
    return collector.finish()


def same(one: LevelTables, two: LevelTables) -> None:
    assert one.n_rows == two.n_rows
    np.testing.assert_array_equal(one.n_clipped, two.n_clipped)
    for feature in NAMES:
        for layer in range(N_LAYERS):
            for name, value in one.of(feature, layer).items():
                np.testing.assert_array_equal(value, two.of(feature, layer)[name])


@given(st.data(), st.sampled_from([1, 5, 1 << 20]))
@settings(max_examples=40, deadline=None)
def test_any_cut_and_merge_equals_a_count_by_hand(data: Any, cells: int) -> None:
    n_rows = data.draw(st.integers(1, 25))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    values = rng.normal(size=(N_LAYERS, n_rows, N_NEURONS)).astype(np.float32)
    labels = data.draw(hnp.arrays(np.int8, (n_rows, N_FEATURES), elements=st.sampled_from([-1, 0, 1])))
    split = data.draw(hnp.arrays(np.int8, n_rows, elements=st.integers(0, 2)))
    cuts = sorted(data.draw(st.lists(st.integers(0, n_rows), max_size=3)))
    parts = np.split(np.array(data.draw(st.permutations(range(n_rows)))), cuts)
    ranges = some_ranges()
    with pytest.MonkeyPatch.context() as patch:
        # How many cells are counted at once must not matter.
        patch.setattr("sparse_probing.neurons.level_counts._CELLS", {"cpu": cells})
        found = collected(values, labels, split, parts, ranges)
        halves = [collected(values, labels, split, half, ranges) for half in (parts[:1], parts[1:])]
    same(halves[0].merge(halves[1]), found)
    same(halves[1].merge(halves[0]), found)
    is_labelled = (labels != 0).any(axis=1)
    for layer in range(N_LAYERS):
        encoded = encode(torch.from_numpy(values[layer]), *ranges.tensors(torch.device("cpu"), layer))
        levels = encoded.codes.numpy() + ranges.origin[layer]
        wanted = count_levels(
            levels, SignedLabels(labels), split, offset=ranges.offset[layer], scale=ranges.scale[layer]
        )
        for index, feature in enumerate(NAMES):
            counts = LevelCounts(**found.of(feature, layer))
            np.testing.assert_array_equal(counts.counts, wanted[index].counts)
            np.testing.assert_array_equal(counts.class_sizes(), wanted[index].class_sizes())
        if is_labelled.any():
            kept = encode(torch.from_numpy(values[layer, is_labelled]), *ranges.tensors(torch.device("cpu"), layer))
            np.testing.assert_array_equal(found.n_clipped[layer], kept.n_clipped.numpy())


def test_columns_that_mark_the_same_rows_are_kept_once() -> None:
    labels = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [-1, 1, -1]], np.int8)
    values = np.zeros((N_LAYERS, 4, N_NEURONS), np.float32)
    found = collected(values, labels, np.zeros(4, np.int8), [np.arange(4)], some_ranges())
    assert found.tables.shape == (N_LAYERS, 3, 4, N_NEURONS, 256)
    assert found.labelled == (0, 0, 0)


def test_more_rows_than_thirty_two_bits_hold() -> None:
    labels = np.ones((1, N_FEATURES), np.int8)
    values = np.zeros((N_LAYERS, 1, N_NEURONS), np.float32)
    one = collected(values, labels, np.zeros(1, np.int8), [np.arange(1)], some_ranges())
    full = np.full_like(one.tables, (1 << 31) - 1)
    many = LevelTables(**{**vars(one), "tables": full, "n_rows": (1 << 31) - 1})
    assert many.merge(many).tables.min() == (1 << 32) - 2


def test_what_cannot_be_counted_is_refused() -> None:
    labels, split = np.ones((4, N_FEATURES), np.int8), np.zeros(4, np.int8)
    ranges = some_ranges()
    with pytest.raises(DataError, match="strange"):
        LevelCollector(ranges, NAMES, labels * 2, split)
    with pytest.raises(DataError, match="one label per row"):
        LevelCollector(ranges, NAMES, labels[1:], split)
    collector = LevelCollector(ranges, NAMES, labels, split)
    with pytest.raises(DataError, match="not numbers"):
        collector.update(torch.full((N_LAYERS, 4, N_NEURONS), torch.nan), np.arange(4))
    with pytest.raises(DataError, match="expected"):
        collector.update(torch.zeros(N_LAYERS, 3, N_NEURONS), np.arange(4))
    done = collector.finish()
    with pytest.raises(InputError, match="finished"):
        collector.update(torch.zeros(N_LAYERS, 4, N_NEURONS), np.arange(4))
    with pytest.raises(InputError, match="'d' in layer 0 asked for"):
        done.of("d", 0)
    wider = ranges_from_extremes(ranges.offset - 1, ranges.offset + 1, ranges.offset)
    with pytest.raises(InputError, match="cannot be merged"):
        done.merge(LevelCollector(wider, NAMES, labels, split).finish())
