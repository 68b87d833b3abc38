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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing import config
from sparse_probing.activations.capture import Capture, collate
from sparse_probing.activations.columns import choose_columns
from sparse_probing.activations.encoding import Buffer, Encoder, Outlet
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
from sparse_probing.activations.quantisation import Ranges, encode
from sparse_probing.activations.shards import Losses, ShardStore
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError, DataError, InputError
from sparse_probing.models.hooks import canonical_hook, is_causal
from sparse_probing.models.loading import ResolvedModel, choose_device, load_model
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FileEntry, find_manifest, read_manifest, write_manifest
from sparse_probing.store.matrices import STORAGE_DTYPES

Progress = Callable[[int, int], None]

# After running out of memory, batches grow again once this many shards went well.
_SHARDS_BEFORE_RAISE = 8
# How long a part of a shared extraction waits for the others to stage their share.
_WAIT_SECONDS = 3600.0


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


class _Extraction:
    """One extraction on one device: runs shards, hands them to the background, and collects what that says."""

    def __init__(self, model: nn.Module, corpus: Corpus, spec: ExtractionSpec, folder: Location) -> None:
        self.hook = canonical_hook(spec.hook)
        points, self.columns = choose_columns(model, spec)
        self.corpus, self.spec = corpus, spec
        item_bytes = STORAGE_DTYPES[spec.storage_dtype].itemsize
        self.row_bytes = self.columns.n_values
        self.shards = plan_shards(corpus, shard_tokens=spec.shard_tokens, row_bytes=self.row_bytes * item_bytes)
        self.store = ShardStore(folder, self.columns, corpus.rows)
        self.device = next(model.parameters()).device
        self._capture = Capture(model, {self.hook: points}, corpus.selection)
        self._needs_mask = not is_causal(model)
        self._pad_token_id = getattr(getattr(model, "config", None), "pad_token_id", None) or 0
        self._ranges: Ranges | None = None
        largest = max(shard.n_rows for shard in self.shards)
        # What is quantised is staged as float16 first.
        staged_bytes = max(item_bytes, 2 if spec.storage_dtype == "uint8" else 0)
        self._outlet = Outlet(
            self.device,
            n_bytes=largest * self.row_bytes * staged_bytes,
            n_blocks=max(len(shard.sequences) for shard in self.shards),
        )
        self._batch_tokens = spec.batch_tokens
        self._shards_since_shrink = 0
        self._pending: list[Future[None]] = []

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
            "layers": list(self.columns.layers),
            "n_rows": len(self.corpus.selection),
            "n_neurons": self.columns.width,
            "n_neurons_by_layer": list(self.columns.counts),
            "neurons": "all" if self.columns.is_whole else "chosen",
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
        # Raises what failed in the background, before waiting for it.
        self._collect(wait=False)
        buffer = self._outlet.take()
        while True:
            try:
                blocks, row_ids, losses = self._forward(shard, buffer, staged)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink_batches(shard, error)
                buffer.clear()
        work = (shard, buffer, blocks, row_ids, losses, self._outlet.fence(), staged, self._batch_tokens, started)
        self._pending.append(self._shard_writer.submit(self._write, *work))
        self._shards_since_shrink += 1
        if self._shards_since_shrink >= _SHARDS_BEFORE_RAISE:
            self._batch_tokens = min(self.spec.batch_tokens, self._batch_tokens * 2)
            self._shards_since_shrink = 0

    def _forward(
        self, shard: Shard, buffer: Buffer, staged: bool
    ) -> tuple[list[torch.Tensor], NDArray[np.int64], list[torch.Tensor]]:
        """Blocks of codes in the buffer, the row ids in their order, and the losses, perhaps still being copied."""
        encoder = Encoder(
            self.columns, self.columns.layers, None if staged else self._ranges, self.spec.storage_dtype, self.device
        )
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
            blocks.append(self._outlet.encode(encoder, self._capture.run(batch)[self.hook], buffer))
            row_ids.append(batch.rows)
        return blocks, np.concatenate(row_ids), self._outlet.losses(encoder)

    def _shrink_batches(self, shard: Shard, error: Exception) -> None:
        """Halve the batches after running out of memory: the shard is planned anew, and its marker says so.

        Raises
        ------
        InputError
            If a batch is a single sequence already.
        """
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise error
        self._outlet.abandon()
        if self._batch_tokens <= self.corpus.lengths[shard.sequences].max():
            raise InputError(
                f"A single sequence does not fit into the memory of {self.device}.",
                remedy="Use a smaller context_length, fewer extraction.layers, a smaller dtype or another device.",
            ) from error
        self._batch_tokens //= 2
        self._shards_since_shrink = 0

    def _write(
        self,
        shard: Shard,
        buffer: Buffer,
        blocks: list[torch.Tensor],
        row_ids: NDArray[np.int64],
        losses: list[torch.Tensor],
        arrived: Callable[[], None],
        staged: bool,
        batch_tokens: int,
        started: float,
    ) -> None:
        try:
            arrived()
            arrays = [block.numpy() for block in blocks]

            def layer_codes(index: int) -> NDArray[Any]:
                layer, part = self.columns.at(index)
                codes = np.concatenate([array[layer, :, part] for array in arrays])
                if codes.dtype.kind == "f":
                    _check_numbers(codes, self.columns.layers[index])
                return codes

            self.store.write_shard(
                shard.index,
                row_ids,
                layer_codes,
                batch_tokens=batch_tokens,
                seconds=lambda: time.perf_counter() - started,
                staged=staged,
                losses=(lambda: _as_losses(losses, self.columns.layers)) if losses else None,
                executor=self._layer_writers,
            )
        finally:
            self._outlet.release(buffer)

    def _quantise_staged(self, shard: Shard) -> None:
        """Encode a staged shard with the ranges that are known by now."""
        started = time.perf_counter()
        ranges = self._ranges
        assert ranges is not None
        encoded: dict[int, list[torch.Tensor]] = {}
        ids = self.store.read_staged(shard.index, 0)[0]

        def layer_codes(index: int) -> NDArray[Any]:
            values = torch.from_numpy(self.store.read_staged(shard.index, index)[1].copy()).to(self.device)
            parts = ranges.tensors(self.device, self.columns.at(index))
            result = encode(values, *parts)
            encoded[index] = [result.n_clipped.cpu(), result.max_error.cpu()]
            codes: NDArray[Any] = result.codes.cpu().numpy()
            return codes

        def losses() -> Losses:
            parts = zip(*(encoded[index] for index in range(len(self.columns.layers))), strict=True)
            n_clipped, max_error = (torch.cat(part).numpy().reshape(self.columns.shape) for part in parts)
            return Losses(n_clipped.astype(np.int64), max_error)

        staged = self.store.finished(shard.index, staged=True)
        assert staged is not None
        self.store.write_shard(
            shard.index,
            ids,
            layer_codes,
            batch_tokens=staged.batch_tokens,
            seconds=lambda: staged.seconds + time.perf_counter() - started,
            losses=losses,
            executor=self._layer_writers,
        )

    def _collect(self, *, wait: bool) -> None:
        while self._pending and (wait or self._pending[0].done()):
            self._pending.pop(0).result()


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
