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
# Half a step and the rounding of float32 at 255 steps.
_HALF_STEP = 0.5002
FLOAT16_MAX = 65504.0
_CONSTANT = np.float32(1e30)


@dataclass(frozen=True)
class Ranges:
    """Quantisation of every stored neuron, each of the shape of `columns.Columns`: (n_layers, n_neurons) of whole layers.

    Float32 but for `origin`, which is uint8. `inverse` is 1 / scale. A neuron that was constant in training has scale 0
    and a huge inverse: its constant has level 0, anything else counts as clipped, and every level decodes to the constant.
    """

    offset: NDArray[np.float32]
    scale: NDArray[np.float32]
    inverse: NDArray[np.float32]
    origin: NDArray[np.uint8]

    def tensors(self, device: torch.device, part: tuple[int, slice] | slice = slice(None)) -> tuple[torch.Tensor, ...]:
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
    inverse = np.divide(np.float32(1), scale, out=np.full_like(scale, _CONSTANT), where=scale > 0)
    origin = np.where(scale > 0, np.clip(np.rint((mean - offset) * inverse), 0, LEVELS), 0).astype(np.uint8)
    return Ranges(offset=offset, scale=scale, inverse=inverse, origin=origin)


def to_float16(values: torch.Tensor) -> torch.Tensor:
    """Round to float16; what is too large becomes the largest float16 instead of infinity. NaN stays NaN."""
    if values.dtype == torch.float16:
        return values.clamp(-FLOAT16_MAX, FLOAT16_MAX)
    return values.float().clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)


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
    steps = to_float16(values).float().sub_(offset.unsqueeze(-2)).mul_(inverse.unsqueeze(-2))
    levels = steps.round().clamp_(0, LEVELS)
    # In steps: a value inside the range is off by at most half of one, what is off by more was clamped.
    error = steps.sub_(levels).abs_()
    n_clipped = (error > _HALF_STEP).sum(dim=-2, dtype=torch.int32)
    # The second term is large below half a step and negative above: a mask, but several times as fast as one.
    inside = torch.minimum(error, (_HALF_STEP - error).mul_(1e4))
    return Encoded(
        codes=levels.to(torch.uint8).sub_(origin.unsqueeze(-2)),
        n_clipped=n_clipped,
        max_error=inside.amax(dim=-2).clamp_min_(0).mul_(scale),
    )
