"""A finished dataset and a resolved model to a finished activations artifact: one pass, bounded memory, resumable.

Order of work: shards of training text are staged as float16 until the quantisation ranges can be taken from them (uint8
only); everything else is encoded on the device at once. While the model runs, copies and writing go on behind it; a
bounded number of buffers holds the model back when the disk is slower. Layout: `store.matrices`; plan: `plan`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing import config
from sparse_probing.activations.capture import Capture, collate
from sparse_probing.activations.plan import (
    PLAN_VERSION,
    Corpus,
    Shard,
    calibration_shards,
    plan_batches,
    plan_shards,
    read_corpus,
)
from sparse_probing.activations.pooling import MASK_RULE
from sparse_probing.activations.quantisation import Ranges, encode, to_float16
from sparse_probing.activations.shards import Losses, ShardStore
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError, DataError, InputError
from sparse_probing.models.hooks import canonical_hook, find_points, is_causal
from sparse_probing.models.loading import ResolvedModel, choose_device, load_model
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FileEntry, find_manifest, read_manifest, write_manifest
from sparse_probing.store.matrices import STORAGE_DTYPES

Progress = Callable[[int, int], None]

_TORCH_DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}
# Shards in the air: one being filled, the others being copied and written.
BUFFERS = {"cpu": 2, "cuda": 3}
# After running out of memory, batches grow again once this many shards went well.
_SHARDS_BEFORE_RAISE = 8
# How long a part of a shared extraction waits for the others to stage their share.
_WAIT_SECONDS = 3600.0
# Values encoded at a time: on a processor what stays in its cache, on a GPU what makes few calls.
_ENCODE_VALUES = {"cpu": 1 << 18, "cuda": 1 << 26}


def activations_digest(spec: ExtractionSpec, resolved: ResolvedModel, dataset_digest: str) -> str:
    """SHA-256 of what decides the stored numbers: spec, dataset, weights, dtype and attention implementation."""
    inputs = {
        "dataset": dataset_digest,
        "weights": resolved.weights_digest,
        "dtype": resolved.dtype,
        "attention": resolved.attention,
    }
    named = spec.model_copy(update={"hook": canonical_hook(spec.hook)})
    return config.digest(named, inputs=inputs, version=config.EXTRACTION_VERSION)


def activations_folder(root: Location, resolved: ResolvedModel, dataset_digest: str, digest: str) -> Location:
    """Where an extraction's artifact lies (or will lie)."""
    model, revision = (re.sub(r"[^\w.\-]+", "-", part) for part in (resolved.short_name, resolved.revision[:12]))
    return root / "activations" / f"{model}@{revision}" / f"{config.short(dataset_digest)}-{config.short(digest)}"


def extract_dataset(
    dataset: Location,
    resolved: ResolvedModel,
    spec: ExtractionSpec,
    *,
    root: Location,
    device: str = "auto",
    progress: Progress | None = None,
    shard: tuple[int, int] | None = None,
) -> Location:
    """Extract the labelled rows of a finished dataset, or find them extracted already.

    A call that was interrupted is taken up where it stopped, and ends with the same bytes as an undisturbed one.

    Parameters
    ----------
    dataset:
        Folder of a finished dataset artifact.
    root:
        Folder under which ``activations/`` lies.
    device:
        ``auto``, ``cpu`` or ``cuda``; recorded, not part of the digest.
    progress:
        Called with (tokens done, tokens in all) after each shard.
    shard:
        (i, n): do only the i-th of n parts, 0 ≤ i < n, so that machines with a common root share one extraction. All n
        must run: quantisation waits until every part has staged its share. Whoever is last finishes the artifact.

    Returns
    -------
    Location
        Folder of the activations artifact; finished, unless other parts of a shared extraction are still at work.

    Raises
    ------
    ArtifactError
        If the dataset is unfinished or damaged, or files cannot be written.
    InputError
        If hook, layers or device are not there.
    DataError
        If uint8 is asked for and no training row is there to take ranges from, or an activation is not a number.
    """
    dataset_digest = read_manifest(dataset).digest
    digest = activations_digest(spec, resolved, dataset_digest)
    folder = activations_folder(root, resolved, dataset_digest, digest)
    part, n_parts = shard or (0, 1)
    if not 0 <= part < n_parts:
        raise InputError(f"Shard {part} of {n_parts} asked for; expected 0 ≤ i < n.", remedy="Count shards from 0.")
    if find_manifest(folder, digest=digest) is not None:
        return folder
    started = time.perf_counter()
    model = load_model(resolved, device=choose_device(device))
    corpus = read_corpus(
        dataset,
        bos_token_id=getattr(getattr(model, "config", None), "bos_token_id", None),
        next_token=spec.next_token,
        positions=spec.positions,
    )
    with _Extraction(model, corpus, spec, folder) as extraction:
        extraction.run(progress or (lambda done, total: None), part, n_parts)
    try:
        extraction.finish(resolved, spec, digest, seconds=time.perf_counter() - started)
    except ArtifactError:
        # Another part may have finished the artifact, and cleared the markers away, while this one read them.
        if n_parts == 1 or find_manifest(folder, digest=digest) is None:
            raise
    return folder


@dataclass
class _Buffer:
    """Host memory of one shard in the air; pinned where a GPU copies into it."""

    memory: torch.Tensor
    used: int = 0

    def block(self, dtype: torch.dtype, shape: tuple[int, int, int]) -> torch.Tensor:
        """The next free part of the memory, as a tensor."""
        size = int(np.prod(shape)) * dtype.itemsize
        part = self.memory[self.used : self.used + size].view(dtype).view(shape)
        self.used += -(-size // 64) * 64
        return part


class _Extraction:
    """One extraction on one device: runs shards, hands them to the background, and collects what that says."""

    def __init__(self, model: nn.Module, corpus: Corpus, spec: ExtractionSpec, folder: Location) -> None:
        self.hook = canonical_hook(spec.hook)
        points = find_points(model, self.hook, spec.layers)
        self.layers = tuple(point.layer for point in points)
        self.width = points[0].width
        self.corpus, self.spec = corpus, spec
        item_bytes = STORAGE_DTYPES[spec.storage_dtype].itemsize
        self.row_bytes = len(self.layers) * self.width
        self.shards = plan_shards(corpus, shard_tokens=spec.shard_tokens, row_bytes=self.row_bytes * item_bytes)
        self.store = ShardStore(folder, self.layers, self.width, corpus.rows)
        self.device = next(model.parameters()).device
        self._capture = Capture(model, {self.hook: points}, corpus.selection)
        self._needs_mask = not is_causal(model)
        self._pad_token_id = getattr(getattr(model, "config", None), "pad_token_id", None) or 0
        self._ranges: Ranges | None = None
        self._free: SimpleQueue[_Buffer] = SimpleQueue()
        self._made = 0
        self._batch_tokens = spec.batch_tokens
        self._shards_since_shrink = 0
        self._pending: list[Future[None]] = []
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __enter__(self) -> _Extraction:
        on_gpu = self.device.type == "cuda"
        self._shard_writer = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        # On a processor the model needs the cores; beside a GPU they are there to compress.
        self._layer_writers = ThreadPoolExecutor(min(8, os.cpu_count() or 1)) if on_gpu else None
        self._capture.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.__exit__(None, None, None)
        self._shard_writer.shutdown(wait=True, cancel_futures=True)
        if self._layer_writers is not None:
            self._layer_writers.shutdown(wait=True, cancel_futures=True)

    def run(self, progress: Progress, part: int, n_parts: int) -> None:
        """Extract every shard of one part that is not finished yet."""
        mine = [shard for shard in self.shards if shard.index % n_parts == part]
        total = sum(shard.n_tokens for shard in mine)
        done = 0
        staged: set[int] = set()
        if self.spec.storage_dtype == "uint8":
            staged = {shard.index for shard in calibration_shards(self.shards, self.spec.calibration_rows)}
            if not staged:
                raise DataError(
                    "No training row to take quantisation ranges from.",
                    remedy="Use storage_dtype float16, or a dataset with a training split.",
                )
            self._ranges = self.store.ranges()
            for shard in (shard for shard in mine if shard.index in staged):
                if self._ranges is None and self.store.finished(shard.index, staged=True) is None:
                    self._submit(shard, staged=True)
                done += shard.n_tokens
                progress(done, total)
            self._collect(wait=True)
            if self._ranges is None:
                self._wait_for_staged(sorted(staged), n_parts)
                self._ranges = self.store.decide_ranges(sorted(staged))
            for shard in (shard for shard in mine if shard.index in staged):
                if self.store.finished(shard.index) is None:
                    self._quantise_staged(shard)
        for shard in (shard for shard in mine if shard.index not in staged):
            if self.store.finished(shard.index) is None:
                self._submit(shard, staged=False)
            done += shard.n_tokens
            progress(done, total)
        self._collect(wait=True)

    def _wait_for_staged(self, shards: list[int], n_parts: int) -> None:
        """Wait until the other parts of a shared extraction have staged what ranges are taken from."""
        until = time.monotonic() + _WAIT_SECONDS
        while missing := [shard for shard in shards if self.store.finished(shard, staged=True) is None]:
            if n_parts == 1 or time.monotonic() > until:
                raise ArtifactError(
                    f"{self.store.folder}: staged shards {missing} are not there.",
                    remedy=f"Run all {n_parts} parts of the extraction; each takes up where it stopped.",
                )
            time.sleep(1)

    def finish(self, resolved: ResolvedModel, spec: ExtractionSpec, digest: str, *, seconds: float) -> None:
        """Write what belongs to all shards, and the manifest last."""
        files: dict[str, FileEntry] = self.store.write_rows()
        batch_tokens: set[int] = set()
        busy = 0.0
        for shard in self.shards:
            marker = self.store.finished(shard.index)
            if marker is None:
                # The part that this shard belongs to is still at work, and will write the manifest.
                return
            files.update(marker.files)
            batch_tokens.add(marker.batch_tokens)
            busy += marker.seconds
        n_tokens = sum(shard.n_tokens for shard in self.shards)
        facts: dict[str, Any] = {
            "layers": list(self.layers),
            "n_rows": len(self.corpus.selection),
            "n_neurons": self.width,
            "n_sequences": len(self.corpus.lengths),
            "n_tokens": n_tokens,
            "storage_dtype": spec.storage_dtype,
            "hook": self.hook,
            "pooling": self.corpus.pooling,
            "mask_rule": MASK_RULE,
            "next_token": spec.next_token,
            "positions": spec.positions,
            "model": resolved.short_name,
            "model_id": resolved.id,
            "revision": resolved.revision,
            "architecture": resolved.architecture,
            "weights_digest": resolved.weights_digest,
            "tokenizer_digest": resolved.tokenizer_digest,
            "model_dtype": resolved.dtype,
            "attention": resolved.attention,
            "device": self.device.type,
            "batch_plan_version": PLAN_VERSION,
            "batch_tokens": sorted(batch_tokens),
            "n_shards": len(self.shards),
            "max_clipped_fraction": 0.0,
            "max_quantisation_error": None,
            "quantisation_error_bound": None,
            "seconds": seconds,
            "tokens_per_second": n_tokens / busy if busy else None,
        }
        if self._ranges is not None:
            losses = self.store.read_losses(shard.index for shard in self.shards)
            files.update(self.store.write_quantisation(self._ranges, losses))
            facts["max_clipped_fraction"] = float(losses.n_clipped.max() / max(1, len(self.corpus.selection)))
            facts["max_quantisation_error"] = float(losses.max_error.max())
            facts["quantisation_error_bound"] = float(self._ranges.error_bound().max())
        write_manifest(
            self.store.folder,
            kind="activations",
            digest=digest,
            spec=spec.model_dump(mode="json"),
            files=files,
            inputs={"dataset": self.corpus.digest, "weights": resolved.weights_digest},
            facts=facts,
        )
        self.store.remove_scaffolding()

    def _submit(self, shard: Shard, *, staged: bool) -> None:
        """Run one shard and hand its buffer to the background, which finishes it."""
        started = time.perf_counter()
        buffer = self._buffer()
        while True:
            try:
                blocks, row_ids, losses = self._forward(shard, buffer, staged)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink_batches(shard, error)
                buffer.used = 0
        copied = self._copies.record_event() if self._copies is not None else None
        work = (shard, buffer, blocks, row_ids, losses, copied, staged, self._batch_tokens, started)
        self._pending.append(self._shard_writer.submit(self._write, *work))
        self._shards_since_shrink += 1
        if self._shards_since_shrink >= _SHARDS_BEFORE_RAISE:
            self._batch_tokens = min(self.spec.batch_tokens, self._batch_tokens * 2)
            self._shards_since_shrink = 0

    def _forward(
        self, shard: Shard, buffer: _Buffer, staged: bool
    ) -> tuple[list[torch.Tensor], NDArray[np.int64], list[torch.Tensor]]:
        """Blocks of codes in the buffer, the row ids in their order, and the losses, perhaps still being copied."""
        encoder = _Encoder(None if staged else self._ranges, self.spec.storage_dtype, self.device)
        blocks: list[torch.Tensor] = []
        row_ids: list[NDArray[np.int64]] = []
        for members in plan_batches(self.corpus.lengths[shard.sequences], self._batch_tokens):
            chosen = shard.sequences[members]
            batch = collate(
                [self.corpus.sequence(int(index)) for index in chosen],
                chosen,
                self.corpus.selection,
                device=self.device,
                needs_mask=self._needs_mask,
                pad_token_id=self._pad_token_id,
            )
            values = self._capture.run(batch)[self.hook]
            block = buffer.block(encoder.dtype, (len(self.layers), len(batch.rows), self.width))
            if self._copies is None:
                encoder.encode(values, block)
            else:
                codes = torch.empty(block.shape, dtype=encoder.dtype, device=self.device)
                encoder.encode(values, codes)
                self._copy(codes, block)
            blocks.append(block)
            row_ids.append(batch.rows)
        losses = encoder.losses()
        if self._copies is not None:
            pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in losses]
            losses = [self._copy(tensor, target) for tensor, target in zip(losses, pinned, strict=True)]
        return blocks, np.concatenate(row_ids), losses

    def _shrink_batches(self, shard: Shard, error: Exception) -> None:
        """Halve the batches after running out of memory: the shard is planned anew, and its marker says so.

        Raises
        ------
        InputError
            If a batch is a single sequence already.
        """
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise error
        if self._copies is not None:
            self._copies.synchronize()
            torch.cuda.empty_cache()
        if self._batch_tokens <= self.corpus.lengths[shard.sequences].max():
            raise InputError(
                f"A single sequence does not fit into the memory of {self.device}.",
                remedy="Use a smaller context_length, fewer extraction.layers, a smaller dtype or another device.",
            ) from error
        self._batch_tokens //= 2
        self._shards_since_shrink = 0

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Copy to pinned memory behind the model's back."""
        assert self._copies is not None
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._copies)
        return target

    def _write(
        self,
        shard: Shard,
        buffer: _Buffer,
        blocks: list[torch.Tensor],
        row_ids: NDArray[np.int64],
        losses: list[torch.Tensor],
        copied: torch.cuda.Event | None,
        staged: bool,
        batch_tokens: int,
        started: float,
    ) -> None:
        try:
            if copied is not None:
                copied.synchronize()
            arrays = [block.numpy() for block in blocks]

            def layer_codes(index: int) -> NDArray[Any]:
                codes = np.concatenate([array[index] for array in arrays])
                if codes.dtype.kind == "f":
                    _check_numbers(codes, self.layers[index])
                return codes

            self.store.write_shard(
                shard.index,
                row_ids,
                layer_codes,
                batch_tokens=batch_tokens,
                seconds=lambda: time.perf_counter() - started,
                staged=staged,
                losses=(lambda: _as_losses(losses, self.layers)) if losses else None,
                executor=self._layer_writers,
            )
        finally:
            buffer.used = 0
            self._free.put(buffer)

    def _quantise_staged(self, shard: Shard) -> None:
        """Encode a staged shard with the ranges that are known by now."""
        started = time.perf_counter()
        ranges = self._ranges
        assert ranges is not None
        encoded: dict[int, list[torch.Tensor]] = {}
        ids = self.store.read_staged(shard.index, 0)[0]

        def layer_codes(index: int) -> NDArray[Any]:
            values = torch.from_numpy(self.store.read_staged(shard.index, index)[1].copy()).to(self.device)
            parts = ranges.tensors(self.device, index)
            result = encode(values, *parts)
            encoded[index] = [result.n_clipped.cpu(), result.max_error.cpu()]
            codes: NDArray[Any] = result.codes.cpu().numpy()
            return codes

        staged = self.store.finished(shard.index, staged=True)
        assert staged is not None
        self.store.write_shard(
            shard.index,
            ids,
            layer_codes,
            batch_tokens=staged.batch_tokens,
            seconds=lambda: staged.seconds + time.perf_counter() - started,
            losses=lambda: Losses(
                np.stack([encoded[index][0].numpy() for index in range(len(self.layers))]).astype(np.int64),
                np.stack([encoded[index][1].numpy() for index in range(len(self.layers))]),
            ),
            executor=self._layer_writers,
        )

    def _buffer(self) -> _Buffer:
        """A free buffer: waits for the background when all are in the air, and raises what failed there."""
        self._collect(wait=False)
        if self._made < BUFFERS[self.device.type] and self._free.empty():
            self._made += 1
            largest = max(shard.n_rows for shard in self.shards)
            n_batches = max(len(shard.sequences) for shard in self.shards)
            item_bytes = 2 if self.spec.storage_dtype == "uint8" else STORAGE_DTYPES[self.spec.storage_dtype].itemsize
            size = largest * self.row_bytes * item_bytes + 64 * n_batches
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            return _Buffer(memory)
        return self._free.get()

    def _collect(self, *, wait: bool) -> None:
        while self._pending and (wait or self._pending[0].done()):
            self._pending.pop(0).result()


class _Encoder:
    """Activations of one shard to what is stored, on the device; counts what that costs."""

    def __init__(self, ranges: Ranges | None, storage_dtype: str, device: torch.device) -> None:
        self._parts: tuple[torch.Tensor, ...] = ()
        self._n_clipped = self._max_error = torch.empty(0)
        self._chunk = _ENCODE_VALUES[device.type]
        self.dtype = _TORCH_DTYPES[storage_dtype]
        if storage_dtype == "uint8":
            if ranges is None:
                self.dtype = torch.float16
            else:
                self._parts = ranges.tensors(device)
                self._n_clipped = torch.zeros(ranges.scale.shape, dtype=torch.int32, device=device)
                self._max_error = torch.zeros(ranges.scale.shape, dtype=torch.float32, device=device)

    @torch.inference_mode()
    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Encode (n_layers, n_rows, n_neurons) into `out`."""
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
        """Rows clipped and largest error so far, or nothing where nothing was quantised."""
        return [self._n_clipped, self._max_error] if self._parts else []


def _as_losses(tensors: list[torch.Tensor], layers: tuple[int, ...]) -> Losses:
    n_clipped, max_error = (tensor.numpy() for tensor in tensors)
    _check_numbers(max_error, layers)
    return Losses(n_clipped.astype(np.int64), max_error)


def _check_numbers(values: NDArray[Any], layers: int | tuple[int, ...]) -> None:
    if np.isnan(values).any():
        raise DataError(
            f"Activations of layer {layers} hold values that are not numbers.",
            remedy="Run the model in float32 or bfloat16: float16 overflows inside some models.",
        )
