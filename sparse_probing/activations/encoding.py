"""From activations on the device to codes in host memory: the encoder, the buffers, and the copies made while the model runs.

Nothing here knows of a model, a plan or a file. Contract, for each shard: `Outlet.take` a buffer (waits until one is
free), `Outlet.encode` batch after batch into it, wait for `Outlet.fence` before its blocks are read, and
`Outlet.release` it when they have been.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np
import torch

from sparse_probing.activations.columns import Columns
from sparse_probing.activations.quantisation import Ranges, encode, to_float16

# Shards under way: one being filled, the others being copied and written.
BUFFERS = {"cpu": 2, "cuda": 3}

_TORCH_DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}
# Blocks in a buffer begin at multiples of this.
_ALIGNMENT = 64
# Values encoded at a time: on a processor what stays in its cache, on a GPU what makes few calls.
_ENCODE_VALUES = {"cpu": 1 << 18, "cuda": 1 << 26}


class Encoder:
    """Activations of one shard to what is stored, on the device; counts what that costs. `fresh` makes one to use.

    Parameters
    ----------
    columns:
        Neurons to keep.
    captured:
        Layers of the values that will come; those of `columns` are among them.
    ranges:
        Quantisation, arrays of the shape of `columns`; None where none is known yet: uint8 is then staged as float16.
    storage_dtype:
        ``uint8``, ``float16`` or ``float32``.
    """

    def __init__(
        self,
        columns: Columns,
        captured: Sequence[int],
        ranges: Ranges | None,
        storage_dtype: str,
        device: torch.device,
    ) -> None:
        self._pick = _picker(columns, captured, device)
        self._parts: tuple[torch.Tensor, ...] = ()
        self._n_clipped = self._max_error = torch.empty(0)
        self._chunk = _ENCODE_VALUES[device.type]
        self.dtype = _TORCH_DTYPES[storage_dtype]
        if storage_dtype == "uint8":
            if ranges is None:
                self.dtype = torch.float16
            else:
                self._parts = ranges.tensors(device)

    def fresh(self) -> Encoder:
        """An encoder of the next shard: what lies on the device is shared, what is counted begins at nothing.

        To bring ranges to a GPU for each shard would make the model wait for them.
        """
        other = copy.copy(self)
        if self._parts:
            shape, device = self._parts[0].shape, self._parts[0].device
            other._n_clipped = torch.zeros(shape, dtype=torch.int32, device=device)
            other._max_error = torch.zeros(shape, dtype=torch.float32, device=device)
        return other

    def pick(self, values: torch.Tensor) -> torch.Tensor:
        """Of (n_captured, n_rows, width) the values to keep: the shape of `Columns`, rows between its axes."""
        return self._pick(values)

    @torch.inference_mode()
    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Encode what `pick` gave into `out`, of the same shape."""
        n_layers, n_rows, n_neurons = values.shape
        rows = max(1, min(n_rows, self._chunk // n_neurons))
        step = max(1, self._chunk // (rows * n_neurons))
        for first in range(0, n_layers, step):
            layers = slice(first, first + step)
            parts = [tensor[layers] for tensor in self._parts]
            for top in range(0, n_rows, rows):
                part = (layers, slice(top, top + rows))
                if parts:
                    result = encode(values[part], *parts)
                    out[part] = result.codes
                    self._n_clipped[layers] += result.n_clipped
                    torch.maximum(self._max_error[layers], result.max_error, out=self._max_error[layers])
                elif self.dtype == torch.float16:
                    out[part] = to_float16(values[part])
                else:
                    out[part] = values[part]

    def losses(self) -> list[torch.Tensor]:
        """Rows clipped and largest error so far, of the shape of `Columns`; nothing where nothing was quantised."""
        return [self._n_clipped, self._max_error] if self._parts else []


def _picker(columns: Columns, captured: Sequence[int], device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """How to pick an artifact's values from those captured; indices are brought to the device once."""
    if columns.is_whole and columns.layers == tuple(captured):
        return lambda values: values
    places = [list(captured).index(layer) for layer in columns.layers]
    if columns.is_whole:
        index = torch.tensor(places, device=device)
        return lambda values: values.index_select(0, index)
    at = torch.from_numpy(np.repeat(places, columns.counts)).to(device)
    neurons = torch.from_numpy(np.concatenate(columns.neurons).astype(np.int64)).to(device)
    return lambda values: values[at, :, neurons].T.unsqueeze(0)


class Buffer:
    """Host memory of one shard under way; pinned if a GPU copies into it."""

    def __init__(self, n_bytes: int, *, pinned: bool) -> None:
        self._memory = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned)
        self._used = 0

    def block(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """The next free part of the memory, as a tensor."""
        size = int(np.prod(shape)) * dtype.itemsize
        part = self._memory[self._used : self._used + size].view(dtype).view(shape)
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return part

    def clear(self) -> None:
        """Forget the blocks."""
        self._used = 0


class Outlet:
    """Copies from one device to host memory.

    Parameters
    ----------
    n_bytes, n_blocks:
        Most bytes that the codes of a shard take, in how many blocks at most.
    """

    def __init__(self, device: torch.device, *, n_bytes: int, n_blocks: int) -> None:
        self._device = device
        self._size = n_bytes + _ALIGNMENT * n_blocks
        self._free: SimpleQueue[Buffer] = SimpleQueue()
        self._made = 0
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def take(self) -> Buffer:
        """A free buffer; waits for one while all are in use."""
        if self._made < BUFFERS[self._device.type] and self._free.empty():
            self._made += 1
            return Buffer(self._size, pinned=self._copies is not None)
        return self._free.get()

    def release(self, buffer: Buffer) -> None:
        """Give a buffer back; its blocks are void. From any thread."""
        buffer.clear()
        self._free.put(buffer)

    def encode(self, encoder: Encoder, values: torch.Tensor, buffer: Buffer) -> torch.Tensor:
        """Codes of captured (n_layers, n_rows, width) in the buffer; perhaps still being copied (see `fence`)."""
        values = encoder.pick(values)
        block = buffer.block(encoder.dtype, tuple(values.shape))
        if self._copies is None:
            encoder.encode(values, block)
            return block
        codes = torch.empty(block.shape, dtype=encoder.dtype, device=self._device)
        encoder.encode(values, codes)
        return self._copy(codes, block)

    def losses(self, encoder: Encoder) -> list[torch.Tensor]:
        """What encoding cost so far, in host memory; perhaps still being copied."""
        found = encoder.losses()
        if self._copies is None:
            return found
        return [self._copy(tensor, torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)) for tensor in found]

    def fence(self) -> Callable[[], None]:
        """What to call, from any thread, to wait until everything handed over up to now has arrived."""
        if self._copies is None:
            return lambda: None
        wait: Callable[[], None] = self._copies.record_event().synchronize
        return wait

    def abandon(self) -> None:
        """After running out of memory: wait for the copies under way, and give the device's free memory back."""
        if self._copies is not None:
            self._copies.synchronize()
            torch.cuda.empty_cache()

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Copy to pinned memory while the model runs."""
        assert self._copies is not None
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._copies)
        return target
