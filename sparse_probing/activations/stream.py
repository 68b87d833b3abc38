"""Activations of chosen rows as a stream of typed batches: the library's way to read a model without storing anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing.activations.capture import Capture, collate
from sparse_probing.activations.plan import Selection, plan_batches
from sparse_probing.activations.self_check import check_model
from sparse_probing.errors import InputError
from sparse_probing.models.hooks import canonical_hook, find_points


@dataclass(frozen=True)
class ActivationBatch:
    """Activations of some rows, in the hooked modules' dtype (float32 for mean and max), on the model's device.

    Attributes
    ----------
    rows:
        (n_rows,) indices into the selection.
    layers:
        Layers of each hook.
    values:
        By hook: (n_layers, n_rows, width).
    """

    rows: NDArray[np.int64]
    layers: dict[str, tuple[int, ...]]
    values: dict[str, torch.Tensor]


def extract(
    model: nn.Module,
    sequences: Sequence[NDArray[np.integer[Any]]],
    selection: Selection,
    *,
    hooks: Sequence[str] = ("mlp.hook_post",),
    layers: tuple[int, ...] | None = None,
    batch_tokens: int = 2048,
) -> Iterator[ActivationBatch]:
    """Activations of chosen rows, several hooks and all layers in one pass, as a stream of batches.

    Batches are of similar length, so rows are not in the order of the selection; `ActivationBatch.rows` holds their indices.

    Parameters
    ----------
    model:
        A base model in evaluation mode, on the device it is to run on.
    sequences:
        Token ids of each sequence, unpadded.
    selection:
        Rows to keep; its `sequence` indexes `sequences`. Sequences without a row are not run.
    hooks:
        Names of hook points (see `models.hooks`).
    layers:
        Layers to keep; all if None.
    batch_tokens:
        Tokens per forward pass, padding included.

    Raises
    ------
    InputError
        If a hook or layer is unknown, a row names a sequence or position that is not there, or the model fails its
        self-check.
    """
    points = {canonical_hook(hook): find_points(model, hook, layers) for hook in hooks}
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    _check_selection(selection, lengths)
    used = np.unique(selection.sequence)
    device = next(model.parameters()).device
    rule = check_model(model, points, longest=int(lengths[used].max()))
    numbers = {hook: tuple(point.layer for point in found) for hook, found in points.items()}
    with Capture(model, points, selection) as capture:
        for members in plan_batches(lengths[used], batch_tokens, equal_lengths=rule.equal_lengths):
            chosen = used[members]
            batch = collate([sequences[index] for index in chosen], chosen, selection, device=device, rule=rule)
            yield ActivationBatch(rows=batch.rows, layers=numbers, values=capture.run(batch))


def _check_selection(selection: Selection, lengths: NDArray[np.int64]) -> None:
    if not len(selection):
        raise InputError("The selection has no rows.", remedy="Select at least one position.")
    sequence = selection.sequence
    if (
        (np.diff(sequence) < 0).any()
        or sequence[0] < 0
        or sequence[-1] >= len(lengths)
        or (selection.start < 0).any()
        or (selection.start >= selection.stop).any()
        or (selection.stop > lengths[sequence]).any()
    ):
        raise InputError(
            f"A row of the selection lies outside of its sequence, or rows are not in order of sequence "
            f"({len(lengths)} sequences).",
            remedy="Order rows by sequence and keep 0 <= start < stop <= length.",
        )
    if selection.pooling in ("mean", "max") and (np.diff(sequence) == 0).any():
        raise InputError("A pooled selection has two rows of one sequence; expected one.", remedy="Pool one range.")
