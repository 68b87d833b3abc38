"""From the positions of a sequence to one row: which positions count, and how they are put together.

The mask rule, the only one: a position counts if it lies in the dataset's ``[pool_start, pool_end)``, holds a token of
the sequence (padding does not, on whichever side it is), and is not a leading beginning-of-sequence token. Positions are
those of the unpadded sequence; ids are compared with ``is not None``, so that a beginning-of-sequence id of 0 counts as
one. Pure functions of tensors; no models, no files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_probing.config import Pooling
from sparse_probing.errors import DataError

MASK_RULE = "pool_start <= position < pool_end, no padding, no leading beginning-of-sequence token"


def pooled_range(
    tokens: NDArray[np.integer], pool_start: int, pool_end: int, *, bos_token_id: int | None
) -> tuple[int, int]:
    """The positions ``[first, last)`` of one sequence that pooling uses, by the mask rule.

    Raises
    ------
    DataError
        If none is left.
    """
    start, end = max(0, pool_start), min(len(tokens), pool_end)
    if start == 0 and bos_token_id is not None and len(tokens) and int(tokens[0]) == bos_token_id:
        start = 1
    if start >= end:
        raise DataError(
            f"A sequence of {len(tokens)} tokens has no position to pool in [{pool_start}, {pool_end}).",
            remedy="Leave the sequence out of the dataset, or widen its pool_start and pool_end.",
        )
    return start, end


def pool_ranges(
    values: torch.Tensor, starts: Sequence[int], ends: Sequence[int], pooling: Pooling, *, dense: bool
) -> torch.Tensor:
    """Pool positions ``[start, end)`` of each sequence of a padded batch.

    Parameters
    ----------
    values:
        (n_sequences, n_positions, n_neurons), any float dtype.
    starts, ends:
        Ranges in padded positions, one per sequence, none empty.
    pooling:
        ``mean`` (summed in float32) or ``max``.
    dense:
        True: a few operations over the whole batch (for a device that pays by the call); False: one per sequence, over
        its range alone. What lies outside the ranges never matters, whatever it holds.

    Returns
    -------
    torch.Tensor
        (n_sequences, n_neurons) float32.
    """
    if dense:
        positions = torch.arange(values.shape[1], device=values.device)
        first = torch.as_tensor(starts, device=values.device)[:, None]
        last = torch.as_tensor(ends, device=values.device)[:, None]
        outside = ((positions < first) | (positions >= last))[:, :, None]
        if pooling == "max":
            return values.masked_fill(outside, -torch.inf).amax(dim=1).float()
        total = values.masked_fill(outside, 0).sum(dim=1, dtype=torch.float32)
        return total / (last - first).float()
    ranges = [row[start:end] for row, start, end in zip(values, starts, ends, strict=True)]
    if pooling == "max":
        return torch.stack([span.amax(dim=0) for span in ranges]).float()
    return torch.stack([span.sum(dim=0, dtype=torch.float32) / len(span) for span in ranges])
