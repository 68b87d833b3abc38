"""Activations of chosen rows as a stream of typed batches: the library's way to read a model without storing anything."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing import showing
from sparse_probing.activations.capture import BatchRule, Capture, collate
from sparse_probing.activations.plan import Selection, plan_batches
from sparse_probing.activations.self_check import check_model
from sparse_probing.errors import InputError
from sparse_probing.models.hooks import HookPoint, canonical_hook, find_points


@dataclass(frozen=True, eq=False, repr=False)
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

    def table(self) -> pa.Table:
        """One row per hook, layer and row of the batch.

        Columns are ``hook``, ``layer``, ``row_id`` (the index into the selection) and ``activation``, a list of float32.
        """
        parts = []
        for hook, values in self.values.items():
            for layer, block in zip(self.layers[hook], values, strict=True):
                known = {"hook": [hook] * len(self.rows), "layer": pa.array([layer] * len(self.rows), pa.int32())}
                flat = pa.array(block.float().cpu().numpy().ravel())
                lists = pa.FixedSizeListArray.from_arrays(flat, block.shape[-1]).cast(pa.list_(pa.float32()))
                parts.append(pa.table({**known, "row_id": pa.array(self.rows, pa.int64()), "activation": lists}))
        return pa.concat_tables(parts)

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        columns = {
            "hook": list(self.values),
            "layers": [", ".join(map(str, self.layers[hook])) for hook in self.values],
            "shape": [str(tuple(values.shape)) for values in self.values.values()],
            "dtype": [str(values.dtype).removeprefix("torch.") for values in self.values.values()],
        }
        return f"ActivationBatch of {len(self.rows)} rows", columns, "shape is (n_layers, n_rows, width)"

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


class ActivationStream(Iterator[ActivationBatch]):
    """Batches of activations, computed as they are asked for; it can be read once.

    Attributes
    ----------
    n_rows:
        Rows of all batches together.
    layers:
        Layers of each hook.
    """

    def __init__(
        self, batches: Generator[ActivationBatch, None, None], n_rows: int, layers: dict[str, tuple[int, ...]]
    ) -> None:
        self._batches = batches
        self.n_rows, self.layers = n_rows, layers

    def __next__(self) -> ActivationBatch:
        return next(self._batches)

    def close(self) -> None:
        """Take the hooks off the model before all batches are read; nothing happens afterwards."""
        self._batches.close()

    def table(self) -> pa.Table:
        """`ActivationBatch.table` of all batches that are left, in memory at once."""
        return pa.concat_tables([batch.table() for batch in self])

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        columns = {
            "hook": list(self.layers),
            "layers": [", ".join(map(str, layers)) for layers in self.layers.values()],
        }
        return f"ActivationStream of {self.n_rows} rows; iterate over it for batches", columns, ""

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


def extract(
    model: nn.Module,
    sequences: Sequence[NDArray[np.integer[Any]]],
    selection: Selection,
    *,
    hooks: Sequence[str] = ("mlp.hook_post",),
    layers: tuple[int, ...] | None = None,
    batch_tokens: int = 2048,
) -> ActivationStream:
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

    Returns
    -------
    ActivationStream
        An iterator of `ActivationBatch`; nothing is computed before it is read.

    Raises
    ------
    InputError
        If a hook or layer is unknown, a row names a sequence or position that is not there, or the model fails its
        self-check.

    Examples
    --------
    A model of random weights, two sequences, and one row for the last token of each:

    >>> import numpy as np
    >>> from transformers import AutoModel, LlamaConfig
    >>> from sparse_probing import Selection, extract
    >>> shape = dict(vocab_size=64, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    >>> model = AutoModel.from_config(LlamaConfig(**shape)).eval()
    >>> sequences = [np.array([5, 9, 11]), np.array([7, 8, 9, 10])]
    >>> last = Selection("none", sequence=np.array([0, 1]), start=np.array([2, 3]), stop=np.array([3, 4]))
    >>> stream = extract(model, sequences, last, hooks=["mlp.hook_post"])
    >>> stream.table().select(["hook", "layer", "row_id"]).num_rows
    4
    """
    points = {canonical_hook(hook): find_points(model, hook, layers) for hook in hooks}
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    _check_selection(selection, lengths)
    used = np.unique(selection.sequence)
    rule = check_model(model, points, longest=int(lengths[used].max()))
    numbers = {hook: tuple(point.layer for point in found) for hook, found in points.items()}
    batches = _batches(model, sequences, selection, points, numbers, rule, lengths, used, batch_tokens)
    return ActivationStream(batches, len(selection), numbers)


def _batches(
    model: nn.Module,
    sequences: Sequence[NDArray[np.integer[Any]]],
    selection: Selection,
    points: dict[str, list[HookPoint]],
    numbers: dict[str, tuple[int, ...]],
    rule: BatchRule,
    lengths: NDArray[np.int64],
    used: NDArray[np.int64],
    batch_tokens: int,
) -> Generator[ActivationBatch, None, None]:
    device = next(model.parameters()).device
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
