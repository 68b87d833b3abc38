"""One forward pass, many hooks: the activations of chosen rows of one batch of sequences.

Rows are picked or pooled inside the hooks, on the device, before anything is copied; the pass ends after the last hook
and never reaches a language-model head. Batches are planned elsewhere (`plan`), and nothing is stored here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing.activations.plan import Selection
from sparse_probing.activations.pooling import pool_ranges
from sparse_probing.errors import ArtifactError
from sparse_probing.models.hooks import HookPoint


@dataclass(frozen=True)
class BatchRule:
    """How sequences of different lengths share a batch of one model; see `self_check.check_model`.

    Attributes
    ----------
    needs_mask:
        Whether positions can see later ones. Where they cannot, padding on the right has no effect and no mask is
        given, so that attention can use its fastest kernel.
    equal_lengths:
        Whether only sequences of one length share a batch, because padding reaches other positions even with a mask.
    pad_token_id:
        What sequences are filled up with.
    """

    needs_mask: bool = True
    equal_lengths: bool = False
    pad_token_id: int = 0

    @property
    def name(self) -> str:
        """``unmasked``, ``masked`` or ``equal_lengths``, as manifests have it."""
        if self.equal_lengths:
            return "equal_lengths"
        return "masked" if self.needs_mask else "unmasked"


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
    rule: BatchRule,
) -> TokenBatch:
    """Fill sequences up on the right to one batch and find their rows in it.

    On the left, positions that count from the first token that is no padding would shift.

    Parameters
    ----------
    tokens:
        The batch's sequences.
    indices:
        (n_sequences,) what the selection calls them.
    """
    lengths = np.array([len(sequence) for sequence in tokens], dtype=np.int64)
    width = int(lengths.max())
    ids = np.full((len(tokens), width), rule.pad_token_id, dtype=np.int64)
    for i, sequence in enumerate(tokens):
        ids[i, : lengths[i]] = sequence
    inputs = {"input_ids": ids}
    if rule.needs_mask and (lengths < width).any():
        inputs["attention_mask"] = (np.arange(width) < lengths[:, None]).astype(np.int64)
    spans = [np.arange(*selection.rows_of(int(index)).indices(len(selection))) for index in indices]
    rows = np.concatenate(spans)
    owner = np.repeat(np.arange(len(tokens)), [len(span) for span in spans])
    starts, stops = selection.start[rows], selection.stop[rows]
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
    ends_early:
        Whether a pass ends after the last hook; if not, a module that would run again after that is noticed.
    """

    def __init__(
        self,
        model: nn.Module,
        points: dict[str, list[HookPoint]],
        selection: Selection,
        *,
        ends_early: bool = True,
    ) -> None:
        self._model = model
        self._ends_early = ends_early
        self._points = points
        self._pooling = selection.pooling
        self._handles: list[Any] = []
        self._batch: TokenBatch | None = None
        self._out: dict[str, torch.Tensor] = {}
        self._seen: set[tuple[str, int]] = set()
        self._n_points = sum(len(found) for found in points.values())

    def __enter__(self) -> Capture:
        for hook, points in self._points.items():
            for index, point in enumerate(points):
                self._handles.append(point.watch(partial(self._keep, hook, index, point)))
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
            If a hooked module was not reached or ran twice, or its tensor has other axes than (sequence, position, width).
        """
        self._out, self._seen = {}, set()
        self._batch = batch
        try:
            self._model(**batch.inputs, use_cache=False)
        except _StopForward:
            pass
        finally:
            self._batch = None
        if len(self._seen) < self._n_points:
            raise ArtifactError(
                f"{self._n_points - len(self._seen)} hooked modules of {type(self._model).__name__} were not run in a "
                "forward pass.",
                remedy="Edit extraction.hook.",
            )
        out, self._out = self._out, {}
        return out

    def _keep(self, hook: str, index: int, point: HookPoint, tensor: torch.Tensor) -> None:
        batch = self._batch
        if batch is None:
            return
        if (hook, index) in self._seen:
            raise ArtifactError(
                f"{point.path} ran twice in a forward pass; a hook is read once.", remedy="Edit extraction.hook."
            )
        n_sequences, n_positions = batch.shape
        axes, width = tuple(tensor.shape), tensor.shape[-1] if tensor.ndim else 0
        flat_axes = (n_sequences * n_positions, width)
        if axes not in ((n_sequences, n_positions, width), flat_axes) or (
            point.columns is None and width != point.width
        ):
            raise ArtifactError(
                f"{point.path} gave a tensor of shape {axes} for {n_sequences} sequences of {n_positions} tokens; "
                f"expected {point.width} values a position, as (sequence, position, value).",
                remedy="Edit extraction.hook.",
            )
        if batch.flat is None:
            pooled = pool_ranges(
                point.read(tensor).reshape(n_sequences, n_positions, -1),
                batch.starts,
                batch.stops,
                self._pooling,
                dense=tensor.device.type != "cpu",
            )
            self._room(hook, index, pooled).copy_(pooled)
        else:
            space = self._room(hook, index, tensor)
            rows = tensor.reshape(flat_axes)
            if point.is_whole and space.dtype == tensor.dtype:
                torch.index_select(rows, 0, batch.flat, out=space)
            else:
                space.copy_(point.read(torch.index_select(rows, 0, batch.flat)))
        self._seen.add((hook, index))
        if self._ends_early and len(self._seen) == self._n_points:
            raise _StopForward

    def _room(self, hook: str, index: int, like: torch.Tensor) -> torch.Tensor:
        """Where a layer's rows go, beside those of the others, in a dtype that holds all of them.

        Some models keep the residual stream in float32 while their weights are bfloat16 (Mamba), from some layer on.
        """
        points, batch = self._points[hook], self._batch
        out = self._out.get(hook)
        if out is None:
            n_rows = len(batch.rows) if batch is not None else 0
            out = like.new_empty((len(points), n_rows, points[0].width))
        elif (wide := torch.promote_types(out.dtype, like.dtype)) != out.dtype:
            out = out.to(wide)
        self._out[hook] = out
        return out[index]


def _to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
