"""One forward pass, many hooks: activations of chosen rows as a stream of typed batches.

Rows are picked or pooled inside the hooks, on the device, before anything is copied; the pass ends after the last hook
and never reaches a language-model head. Nothing is stored here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing.activations.plan import Selection, plan_batches
from sparse_probing.activations.pooling import pool_ranges
from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.models.hooks import HookPoint, canonical_hook, find_points, is_causal, select_tensor

PaddingSide = Literal["right", "left"]


@dataclass(frozen=True)
class ActivationBatch:
    """Activations of some rows, in the model's dtype (float32 for mean and max), on the model's device.

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


@dataclass(frozen=True)
class TokenBatch:
    """One padded batch: what the model is given and which rows to keep of it.

    Attributes
    ----------
    inputs:
        Keyword arguments of the model.
    shape:
        (n_sequences, n_positions), padding included.
    rows:
        (n_rows,) indices into the selection.
    flat:
        (n_rows,) row-major index of each row's position in the padded batch; None for mean and max.
    starts, stops:
        Ranges in padded positions, for mean and max: one row per sequence of the batch.
    """

    inputs: dict[str, torch.Tensor]
    shape: tuple[int, int]
    rows: NDArray[np.int64]
    flat: torch.Tensor | None
    starts: list[int]
    stops: list[int]


class _StopForward(Exception):
    """Raised by the last hook to end the forward pass."""


def collate(
    tokens: Sequence[NDArray[np.integer[Any]]],
    indices: NDArray[np.int64],
    selection: Selection,
    *,
    device: torch.device,
    needs_mask: bool,
    pad_token_id: int = 0,
    padding_side: PaddingSide = "right",
) -> TokenBatch:
    """Pad sequences to one batch and find their rows in it.

    Parameters
    ----------
    tokens:
        The batch's sequences.
    indices:
        (n_sequences,) what the selection calls them.
    needs_mask:
        Whether positions can see later ones. Where they cannot, padding on the right reaches nothing and no mask is
        given, which lets attention take its fastest path.
    """
    lengths = np.array([len(sequence) for sequence in tokens], dtype=np.int64)
    width = int(lengths.max())
    shift = np.zeros_like(lengths) if padding_side == "right" else width - lengths
    ids = np.full((len(tokens), width), pad_token_id, dtype=np.int64)
    for i, sequence in enumerate(tokens):
        ids[i, shift[i] : shift[i] + lengths[i]] = sequence
    inputs = {"input_ids": ids}
    if (lengths < width).any() and (needs_mask or padding_side == "left"):
        positions = np.arange(width) - shift[:, None]
        inputs["attention_mask"] = ((positions >= 0) & (positions < lengths[:, None])).astype(np.int64)
        if padding_side == "left":
            inputs["position_ids"] = np.maximum(positions, 0)
    spans = [np.arange(*selection.rows_of(int(index)).indices(len(selection))) for index in indices]
    rows = np.concatenate(spans)
    owner = np.repeat(np.arange(len(tokens)), [len(span) for span in spans])
    starts, stops = selection.start[rows] + shift[owner], selection.stop[rows] + shift[owner]
    pools = selection.pooling in ("mean", "max")
    return TokenBatch(
        inputs={name: _to_device(array, device) for name, array in inputs.items()},
        shape=(len(tokens), width),
        rows=rows,
        flat=None if pools else _to_device(owner * width + stops - 1, device),
        starts=[int(start) for start in starts] if pools else [],
        stops=[int(stop) for stop in stops] if pools else [],
    )


class Capture:
    """Hooks on a model, for as long as the context lasts; `run` gives the rows of one batch.

    Parameters
    ----------
    model:
        A base model, in evaluation mode.
    points:
        Where to read, by hook; see `models.hooks.find_points`.
    """

    def __init__(self, model: nn.Module, points: dict[str, list[HookPoint]], selection: Selection) -> None:
        self._model = model
        self._points = points
        self._pooling = selection.pooling
        self._handles: list[Any] = []
        self._batch: TokenBatch | None = None
        self._out: dict[str, torch.Tensor] = {}
        self._left = 0
        first = next(model.parameters())
        self._device, self._dtype = first.device, first.dtype

    def __enter__(self) -> Capture:
        for hook, points in self._points.items():
            for index, point in enumerate(points):
                self._handles.append(self._register(hook, index, point))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.inference_mode()
    def run(self, batch: TokenBatch) -> dict[str, torch.Tensor]:
        """Run the model on a batch as far as the last hook: by hook, (n_layers, n_rows, width).

        Raises
        ------
        ArtifactError
            If a hooked module was not reached, or its tensor has another shape than the hook's table says.
        """
        n_rows = len(batch.rows)
        dtype = torch.float32 if batch.flat is None else self._dtype
        self._out = {
            hook: torch.empty(len(points), n_rows, points[0].width, dtype=dtype, device=self._device)
            for hook, points in self._points.items()
        }
        self._batch, self._left = batch, sum(len(points) for points in self._points.values())
        try:
            self._model(**batch.inputs, use_cache=False)
        except _StopForward:
            pass
        finally:
            self._batch = None
        if self._left:
            raise ArtifactError(
                f"{self._left} hooked modules of {type(self._model).__name__} were not run in a forward pass.",
                remedy="Edit extraction.hook.",
            )
        out, self._out = self._out, {}
        return out

    def _register(self, hook: str, index: int, point: HookPoint) -> Any:
        if point.side == "output":
            return point.module.register_forward_hook(
                lambda module, args, output: self._keep(hook, index, select_tensor(output))
            )
        return point.module.register_forward_pre_hook(
            lambda module, args, kwargs: self._keep(hook, index, select_tensor(args or list(kwargs.values()))),
            with_kwargs=True,
        )

    def _keep(self, hook: str, index: int, tensor: torch.Tensor) -> None:
        batch = self._batch
        if batch is None:
            return
        out = self._out[hook]
        n_sequences, n_positions = batch.shape
        if tensor.numel() != n_sequences * n_positions * out.shape[-1]:
            raise ArtifactError(
                f"{hook} gave a tensor of shape {tuple(tensor.shape)} for a batch of {batch.shape}; "
                f"expected {out.shape[-1]} values a position.",
                remedy="Edit extraction.hook.",
            )
        if batch.flat is None:
            pooled = pool_ranges(
                tensor.reshape(n_sequences, n_positions, -1),
                batch.starts,
                batch.stops,
                self._pooling,
                dense=tensor.device.type != "cpu",
            )
            out[index].copy_(pooled)
        else:
            torch.index_select(tensor.reshape(-1, out.shape[-1]), 0, batch.flat, out=out[index])
        self._left -= 1
        if not self._left:
            raise _StopForward


def extract(
    model: nn.Module,
    sequences: Sequence[NDArray[np.integer[Any]]],
    selection: Selection,
    *,
    hooks: Sequence[str] = ("mlp.hook_post",),
    layers: tuple[int, ...] | None = None,
    batch_tokens: int = 2048,
    padding_side: PaddingSide = "right",
    pad_token_id: int = 0,
) -> Iterator[ActivationBatch]:
    """Activations of chosen rows, several hooks and all layers in one pass, as a stream of batches.

    Batches are of similar length, so rows come in the order of no one in particular: `ActivationBatch.rows` says which.

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
    padding_side:
        Results do not depend on it beyond rounding.

    Raises
    ------
    InputError
        If a hook or layer is unknown, or a row names a sequence or position that is not there.
    """
    points = {canonical_hook(hook): find_points(model, hook, layers) for hook in hooks}
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    _check_selection(selection, lengths)
    used = np.unique(selection.sequence)
    device, needs_mask = next(model.parameters()).device, not is_causal(model)
    numbers = {hook: tuple(point.layer for point in found) for hook, found in points.items()}
    with Capture(model, points, selection) as capture:
        for members in plan_batches(lengths[used], batch_tokens):
            chosen = used[members]
            batch = collate(
                [sequences[index] for index in chosen],
                chosen,
                selection,
                device=device,
                needs_mask=needs_mask,
                pad_token_id=pad_token_id,
                padding_side=padding_side,
            )
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


def _to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
