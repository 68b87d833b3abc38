"""Levels: their error is bounded, clamping is counted, constants and infinities are safe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_probing.activations.quantisation import Encoded, Ranges, encode, ranges_from_extremes, to_float16

CPU = torch.device("cpu")


def ranges_of(values: np.ndarray) -> Ranges:
    """Ranges over the rows of (n_layers, n_rows, n_neurons)."""
    return ranges_from_extremes(values.min(axis=1), values.max(axis=1), values.mean(axis=1))


def decoded(result: Encoded, ranges: Ranges) -> np.ndarray:
    levels = result.codes.numpy() + ranges.origin[:, None]
    return ranges.offset[:, None] + ranges.scale[:, None] * levels.astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e4), st.floats(-1e4, 1e4))
def test_error_stays_within_its_bound_and_levels_keep_the_order(seed: int, spread: float, centre: float) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((2, 40, 6)) * spread + centre).astype(np.float16).astype(np.float32)
    ranges = ranges_of(values)
    result = encode(torch.from_numpy(values), *ranges.tensors(CPU))
    back = decoded(result, ranges)
    error = np.abs(back - values)
    assert (error <= ranges.error_bound()[:, None]).all()
    assert not result.n_clipped.any()
    np.testing.assert_allclose(
        result.max_error.numpy(), error.max(axis=1), atol=1e-3 * ranges.scale.max() + 2e-3 * abs(centre) * 2.0**-10
    )
    order = np.argsort(values, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(back, order, axis=1), axis=1) >= 0).all()


def test_what_lies_outside_is_clamped_and_counted() -> None:
    ranges = ranges_from_extremes(np.zeros((1, 2)), np.full((1, 2), 255.0), np.full((1, 2), 10.0))
    values = torch.tensor([[[0.0, 300.0], [255.0, -7.0], [12.3, 100.0]]])
    result = encode(values, *ranges.tensors(CPU))
    np.testing.assert_array_equal(decoded(result, ranges), [[[0, 255], [255, 0], [12, 100]]])
    assert result.n_clipped.tolist() == [[0, 2]]
    assert result.max_error[0, 0] == pytest.approx(0.3, abs=0.01)
    assert result.max_error[0, 1] == 0


def test_a_constant_neuron_stays_what_it_was() -> None:
    ranges = ranges_of(np.full((1, 5, 1), 3.5, np.float32))
    result = encode(torch.tensor([[[3.5], [4.0], [-9.0]]]), *ranges.tensors(CPU))
    np.testing.assert_array_equal(decoded(result, ranges), [[[3.5], [3.5], [3.5]]])
    assert result.n_clipped.item() == 2
    assert result.max_error.item() == 0


def test_float16_saturates() -> None:
    values = torch.tensor([1e9, -torch.inf, 65504.0, 65520.0, 0.1])
    for dtype in (torch.float32, torch.bfloat16):
        rounded = to_float16(values.to(dtype))
        assert torch.isfinite(rounded).all()
        assert rounded[:2].tolist() == [65504.0, -65504.0]
    assert torch.isfinite(to_float16(torch.tensor([torch.inf], dtype=torch.float16))).all()
    assert torch.isnan(to_float16(torch.tensor([torch.nan]))).all()


def test_not_a_number_shows_in_the_error() -> None:
    ranges = ranges_of(np.array([[[0.0], [1.0]]]))
    assert torch.isnan(encode(torch.tensor([[[0.5], [torch.nan]]]), *ranges.tensors(CPU)).max_error).all()
