"""Activations to 256 levels a neuron and back: ranges, encoding, and what the rounding costs.

value = offset + scale · level, and the stored byte is level − origin (modulo 256): the origin, a neuron's mean level in
training, puts the commonest level of every neuron at the same byte, which is what lets a row be compressed. What is
encoded is the activation as float16 (saturating, never infinite), on the device or from a staged file alike; so the same
value gives the same level wherever it is encoded. Pure functions, no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

LEVELS = 255
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Ranges:
    """Quantisation of every neuron, each of shape (n_layers, n_neurons).

    Float32 but for `origin`, which is uint8. `inverse` is 1 / scale, and 0 for a neuron that was constant in training:
    its scale is 0 and its level always 0.
    """

    offset: NDArray[np.float32]
    scale: NDArray[np.float32]
    inverse: NDArray[np.float32]
    origin: NDArray[np.uint8]

    def tensors(self, device: torch.device, part: int | slice = slice(None)) -> tuple[torch.Tensor, ...]:
        """What `encode` asks for, of some layers, on a device."""
        arrays = (self.offset, self.scale, self.inverse, self.origin)
        return tuple(torch.from_numpy(np.ascontiguousarray(array[part])).to(device) for array in arrays)

    def error_bound(self) -> NDArray[np.float64]:
        """Largest possible |decoded − value| of a value inside the range: half a step, and float32's own rounding."""
        top = np.abs(self.offset.astype(np.float64)) + LEVELS * self.scale.astype(np.float64)
        bound: NDArray[np.float64] = 0.5 * self.scale.astype(np.float64) + 2.0**-21 * top
        return bound


def ranges_from_extremes(low: NDArray[np.floating], high: NDArray[np.floating], mean: NDArray[np.floating]) -> Ranges:
    """Ranges that reach from the smallest to the largest value seen (in training rows) for each neuron."""
    offset = low.astype(np.float32)
    scale = ((high.astype(np.float32) - offset) / np.float32(LEVELS)).astype(np.float32)
    # A range so small that 1 / scale overflows is as good as constant.
    scale[scale < np.finfo(np.float32).tiny * 4] = 0
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    origin = np.clip(np.rint((mean - offset) * inverse), 0, LEVELS).astype(np.uint8)
    return Ranges(offset=offset, scale=scale, inverse=inverse, origin=origin)


def to_float16(values: torch.Tensor) -> torch.Tensor:
    """Round to float16; what is too large becomes the largest float16 instead of infinity. NaN stays NaN."""
    if values.dtype != torch.float16:
        values = values.clamp(-FLOAT16_MAX, FLOAT16_MAX)
    return values.to(torch.float16).clamp_(-FLOAT16_MAX, FLOAT16_MAX)


@dataclass(frozen=True)
class Encoded:
    """Stored bytes of a block of rows, and what was lost.

    Attributes
    ----------
    codes:
        (…, n_rows, n_neurons) uint8: level − origin, modulo 256.
    n_clipped:
        (…, n_neurons) int32: rows outside the range.
    max_error:
        (…, n_neurons) float32: largest |decoded − value| of the rows inside; NaN if an activation was NaN.
    """

    codes: torch.Tensor
    n_clipped: torch.Tensor
    max_error: torch.Tensor


def encode(
    values: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor, inverse: torch.Tensor, origin: torch.Tensor
) -> Encoded:
    """Encode activations, clamping what lies outside the ranges.

    Parameters
    ----------
    values:
        (…, n_rows, n_neurons), any float dtype.
    offset, scale, inverse, origin:
        (…, n_neurons), as in `Ranges`, on the same device.
    """
    exact = to_float16(values).float()
    offset, scale, inverse = offset.unsqueeze(-2), scale.unsqueeze(-2), inverse.unsqueeze(-2)
    levels = (exact - offset).mul_(inverse).round_().clamp_(0, LEVELS)
    error = (levels * scale).add_(offset).sub_(exact).abs_()
    # A value inside the range is off by at most half a step: what is off by more was clamped.
    clipped = error > 0.5001 * scale + 2.0**-21 * (offset.abs() + LEVELS * scale)
    return Encoded(
        codes=levels.to(torch.uint8).sub_(origin.unsqueeze(-2)),
        n_clipped=clipped.sum(dim=-2, dtype=torch.int32),
        max_error=error.masked_fill_(clipped, 0).amax(dim=-2),
    )
