"""Top contexts equal a full sort of all rows, however these are cut, ordered or merged, ties included."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_probing.errors import DataError, InputError
from sparse_probing.neurons.contexts import ContextCollector, TopContexts


def by_sorting(values: np.ndarray, sequences: np.ndarray, n: int, one_per_sequence: bool) -> list[list[list[int]]]:
    """Row ids of each neuron's contexts, from a sort in Python."""
    out = []
    for layer in values:
        out.append([])
        for neuron in layer.T:
            rows: list[int] = []
            seen: set[int] = set()
            for row in sorted(range(len(neuron)), key=lambda row: (-float(neuron[row]), row)):
                if one_per_sequence and int(sequences[row]) in seen:
                    continue
                seen.add(int(sequences[row]))
                rows.append(row)
            out[-1].append((rows + [-1] * n)[:n])
    return out


def collected(
    values: np.ndarray, sequences: np.ndarray, parts: list[np.ndarray], n: int, one_per_sequence: bool
) -> TopContexts:
    collector = ContextCollector(values.shape[0], values.shape[2], n, one_per_sequence=one_per_sequence)
    for rows in parts:
        collector.update(torch.from_numpy(values[:, rows]), rows.astype(np.int64), sequences[rows])
    return collector.result()


def same(one: TopContexts, two: TopContexts) -> None:
    for name in ("values", "rows", "sequences"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


# Few distinct values, both zeros among them: most of what is kept is decided by ties.
TIED = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0e38, 1e-42])


@given(st.data(), st.integers(1, 6), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_cut_order_and_merge_equals_a_sort(data: Any, n: int, one_per_sequence: bool) -> None:
    n_rows = data.draw(st.integers(1, 30))
    values = data.draw(hnp.arrays(np.float32, (2, n_rows, 3), elements=TIED))
    # A sequence's rows may come in different batches and parts.
    sequences = data.draw(hnp.arrays(np.int64, n_rows, elements=st.integers(0, 7)))
    order = np.array(data.draw(st.permutations(range(n_rows))))
    cuts = sorted(data.draw(st.lists(st.integers(0, n_rows), max_size=4)))
    parts = np.split(order, cuts)
    found = collected(values, sequences, parts, n, one_per_sequence)
    wanted = by_sorting(values, sequences, n, one_per_sequence)
    np.testing.assert_array_equal(found.rows, wanted)
    for layer, neuron, place in zip(*np.nonzero(found.rows >= 0), strict=True):
        row = found.rows[layer, neuron, place]
        assert found.values[layer, neuron, place] == values[layer, row, neuron]
        assert found.sequences[layer, neuron, place] == sequences[row]
    assert np.isnan(found.values[found.rows < 0]).all()
    middle = len(parts) // 2
    halves = [collected(values, sequences, half, n, one_per_sequence) for half in (parts[:middle], parts[middle:])]
    same(halves[0].merge(halves[1]), found)
    same(halves[1].merge(halves[0]), found)
    same(found.merge(halves[0]), found)


def test_one_sequence_cannot_fill_the_list_unless_it_may() -> None:
    values = np.array([[[5.0], [4.0], [3.0], [1.0]]], np.float32)
    sequences = np.array([8, 8, 8, 9])
    rows = np.arange(4)
    assert collected(values, sequences, [rows], 2, True).rows.tolist() == [[[0, 3]]]
    assert collected(values, sequences, [rows], 2, False).rows.tolist() == [[[0, 1]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_exact_in_every_dtype_of_a_model(dtype: torch.dtype) -> None:
    values = torch.randn(2, 400, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    collector = ContextCollector(2, 7, 5, one_per_sequence=False)
    collector.update(values, np.arange(400), np.arange(400))
    exact = values.float().numpy()
    np.testing.assert_array_equal(collector.result().values, -np.sort(-exact, axis=1)[:, :5].transpose(0, 2, 1))


def test_what_cannot_be_collected_is_refused() -> None:
    collector = ContextCollector(1, 2, 3)
    rows = np.arange(4)
    with pytest.raises(DataError, match="not finite"):
        collector.update(torch.full((1, 4, 2), torch.nan), rows, rows)
    with pytest.raises(DataError, match="Row ids"):
        collector.update(torch.zeros(1, 4, 2), rows + (1 << 32), rows)
    with pytest.raises(DataError, match="expected"):
        collector.update(torch.zeros(1, 3, 2), rows, rows)
    assert (collector.result().rows == -1).all(), "nothing of a refused batch is kept"
    with pytest.raises(InputError, match="cannot be merged"):
        collector.result().merge(ContextCollector(1, 2, 4).result())
    with pytest.raises(InputError, match="at least one"):
        ContextCollector(1, 2, 0)
