"""A finished dataset and a resolved model to finished activations artifacts: one pass, bounded memory, resumable.

Order of work: shards of training text are staged as float16 until the quantisation ranges can be taken from them (uint8
only); everything else is encoded on the device at once. While the model runs, copies and writing go on in the background; a
bounded number of buffers makes the model wait if the disk is slower. One pass can write several artifacts (`writers`),
of several hooks for example; each has the same bytes as if it were extracted alone. Layout: `store.matrices`; plan: `plan`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing.activations.artifact_writer import ArtifactWriter, Need
from sparse_probing.activations.capture import Capture, collate
from sparse_probing.activations.encoding import Buffer, Outlet
from sparse_probing.activations.estimate import check_space, estimate_loaded
from sparse_probing.activations.naming import activations_digest, activations_folder
from sparse_probing.activations.plan import Corpus, Shard, plan_batches, plan_row_bytes, plan_shards, read_corpus
from sparse_probing.activations.self_check import check_model
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.models.hooks import HookPoint
from sparse_probing.models.loading import choose_device, load_model
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import find_manifest, read_manifest

Progress = Callable[[int, int], None]

# What artifacts of one pass may differ in: everything else decides which tokens are run, and how.
MAY_DIFFER = frozenset({"hook", "layers", "neurons", "storage_dtype"})
# After running out of memory, batches grow again once this many shards went well.
_SHARDS_BEFORE_RAISE = 8


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
    """Extract the labelled rows of a finished dataset, or find them extracted already: `extract_datasets` of one spec.

    Returns
    -------
    Location
        Folder of the activations artifact; finished, unless other parts of a shared extraction are still at work.
    """
    return extract_datasets(dataset, resolved, [spec], root=root, device=device, progress=progress, shard=shard)[0]


def extract_datasets(
    dataset: Location,
    resolved: ResolvedModel,
    specs: Sequence[ExtractionSpec],
    *,
    root: Location,
    device: str = "auto",
    progress: Progress | None = None,
    shard: tuple[int, int] | None = None,
    only_ranges: bool = False,
) -> list[Location]:
    """Extract the labelled rows of a finished dataset in several ways (at several hooks, for example) with one pass of the model.

    Each spec has an artifact of its own, with the digest and the files of an extraction of that spec alone; finished
    artifacts are not touched. After an interruption, the same call continues where it stopped and ends with the same bytes as
    an uninterrupted one: a shard is run again if one of the artifacts lacks it, and written for those that do.

    Parameters
    ----------
    dataset:
        Folder of a finished dataset artifact.
    specs:
        They may differ in hook, layers, neurons and storage_dtype.
    root:
        Folder under which ``activations/`` lies.
    device:
        ``auto``, ``cpu`` or ``cuda``; recorded, not part of the digest.
    progress:
        Called with (tokens done, tokens in all) at the beginning and after each batch.
    shard:
        (i, n): do only the i-th of n parts, 0 ≤ i < n, so that machines with a common root share one extraction. Parts
        need nothing of each other; the one that ends last finishes the artifacts. Quantisation ranges that nobody took
        yet are taken by the part that needs them: to have that work done once, call with `only_ranges` first.
    only_ranges:
        Only take the quantisation ranges, and finish the shards that they are taken from; `shard` is not looked at.

    Returns
    -------
    list of Location
        Folder of the artifact of each spec; finished, unless other parts of a shared extraction are still at work.

    Raises
    ------
    ArtifactError
        If the dataset is unfinished or damaged, or files cannot be written.
    InputError
        If hook, layers, neurons or device are not there, the specs cannot share a pass, or there is no room for the files.
    DataError
        If uint8 is asked for and no training row is there to take ranges from, or an activation is not a number.
    """
    _check_shared(specs)
    part, n_parts = (0, 1) if shard is None or only_ranges else shard
    if not 0 <= part < n_parts:
        raise InputError(f"Shard {part} of {n_parts} asked for; expected 0 ≤ i < n.", remedy="Count shards from 0.")
    dataset_digest = read_manifest(dataset).digest
    digests = [activations_digest(spec, resolved, dataset_digest) for spec in specs]
    folders = [activations_folder(root, resolved, dataset_digest, digest) for digest in digests]
    wanted = dict(zip(digests, zip(specs, folders, strict=True), strict=True))

    def unfinished() -> list[str]:
        return [digest for digest, (_, folder) in wanted.items() if find_manifest(folder, digest=digest) is None]

    if not unfinished() or (only_ranges and all(spec.storage_dtype != "uint8" for spec in specs)):
        return folders
    started = time.perf_counter()
    device = choose_device(device)
    model = load_model(resolved, device=device)
    corpus = read_corpus(
        dataset,
        bos_token_id=getattr(getattr(model, "config", None), "bos_token_id", None),
        next_token=specs[0].next_token,
        positions=specs[0].positions,
    )
    shards = plan_shards(corpus, shard_tokens=specs[0].shard_tokens, row_bytes=plan_row_bytes(model, resolved))
    # Refused before the first forward pass, with what would make it fit.
    check_space(estimate_loaded(model, corpus, resolved, specs, device=device, trial_tokens=0), root, specs[0])
    # Loading took its time: another part may have finished them by now.
    writers = [ArtifactWriter(model, corpus, shards, *wanted[digest], digest) for digest in unfinished()]
    if not writers:
        return folders
    with _Pass(model, corpus, shards, writers, specs[0].batch_tokens) as work:
        work.run(progress or (lambda done, total: None), part, n_parts, only_ranges=only_ranges)
    if only_ranges:
        return folders
    for writer in writers:
        with _unless_finished(writer, n_parts):
            seconds = time.perf_counter() - started
            writer.finish(resolved, work.rule, seconds=seconds, n_artifacts=len(writers))
    return folders


@contextmanager
def _unless_finished(writer: ArtifactWriter, n_parts: int) -> Iterator[None]:
    """Another part may finish an artifact, and clear its markers away, while this one reads them: no error then."""
    try:
        yield
    except ArtifactError:
        if n_parts == 1 or not writer.is_finished:
            raise


def _check_shared(specs: Sequence[ExtractionSpec]) -> None:
    if not specs:
        raise InputError("No extraction asked for.", remedy="Give at least one ExtractionSpec.")
    for name in sorted(set(ExtractionSpec.model_fields) - MAY_DIFFER):
        found = {getattr(spec, name) for spec in specs}
        if len(found) > 1:
            raise InputError(
                f"Extractions of one pass differ in {name}: {', '.join(map(str, sorted(found)))}; "
                f"they may differ in {', '.join(sorted(MAY_DIFFER))}.",
                remedy=f"Give them one {name}, or extract them one after the other.",
            )


@dataclass(frozen=True)
class _Result:
    """What one pass over a shard gives one artifact, perhaps still on its way to host memory."""

    writer: ArtifactWriter
    need: Need
    blocks: list[torch.Tensor]
    losses: list[torch.Tensor]


class _Pass:
    """One pass of a model on one device: runs shards, hands them to the background, and collects what that says."""

    def __init__(
        self, model: nn.Module, corpus: Corpus, shards: list[Shard], writers: list[ArtifactWriter], batch_tokens: int
    ) -> None:
        self.corpus, self.shards, self.writers = corpus, shards, writers
        self.device = next(model.parameters()).device
        points: dict[str, dict[int, HookPoint]] = {}
        for writer in writers:
            points.setdefault(writer.hook, {}).update((point.layer, point) for point in writer.points)
        # Layers of each hook that some artifact needs, ascending.
        self._captured = {hook: sorted(found) for hook, found in points.items()}
        hooked = {hook: [points[hook][layer] for layer in layers] for hook, layers in self._captured.items()}
        self._capture = Capture(model, hooked, corpus.selection)
        self.rule = check_model(model, hooked, longest=int(corpus.lengths.max()))
        self._outlet = Outlet(
            self.device,
            n_bytes=max(shard.n_rows for shard in shards) * sum(writer.row_bytes for writer in writers),
            n_blocks=max(len(shard.sequences) for shard in shards) * len(writers),
        )
        self._most_tokens = self._batch_tokens = batch_tokens
        self._shards_since_shrink = 0
        self._pending: list[Future[None]] = []

    def __enter__(self) -> _Pass:
        self._shard_writer = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        self._layer_writers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="layer-writer")
        # On a processor the model needs the cores; beside a GPU they are there to compress.
        self._beside_model = self._layer_writers if self.device.type == "cuda" else None
        self._capture.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.__exit__(None, None, None)
        self._shard_writer.shutdown(wait=True, cancel_futures=True)
        self._layer_writers.shutdown(wait=True, cancel_futures=True)

    def run(self, progress: Progress, part: int, n_parts: int, *, only_ranges: bool = False) -> None:
        """Extract every shard of one part that some artifact lacks, after the ranges are known."""
        calibration = frozenset[int]().union(*(writer.calibration for writer in self.writers))
        mine = [shard for shard in self.shards if shard.index % n_parts == part]
        # Whoever finds no ranges takes them: nobody waits for another part.
        takes_ranges = only_ranges or any(writer.lacks_ranges for writer in self.writers)
        first = [shard for shard in (self.shards if takes_ranges else mine) if shard.index in calibration]
        rest = [] if only_ranges else [shard for shard in mine if shard.index not in calibration]
        total = sum(shard.n_tokens for shard in (*first, *rest))
        done = 0
        progress(done, total)
        for shards in (first, rest):
            for shard in shards:
                found = [(writer, writer.need(shard, shared=n_parts > 1)) for writer in self.writers]
                needs = [(writer, need) for writer, need in found if need is not None]
                if needs:

                    def ran(tokens: int, before: int = done) -> None:
                        progress(before + tokens, total)

                    self._submit(shard, needs, ran)
                done += shard.n_tokens
                progress(done, total)
            self._collect(wait=True)
            if shards is first:
                staged = [shard for shard in mine if shard.index in calibration]
                for writer in self.writers:
                    if writer.calibration:
                        with _unless_finished(writer, n_parts):
                            writer.quantise(staged, executor=self._layer_writers)

    def _submit(self, shard: Shard, needs: list[tuple[ArtifactWriter, Need]], ran: Callable[[int], None]) -> None:
        """Run one shard and hand its buffer to the background, which finishes it.

        `ran` is told the shard's tokens that were run after each batch but the last.
        """
        started = time.perf_counter()
        # Raises what failed in the background, before waiting for it.
        self._collect(wait=False)
        buffer = self._outlet.take()
        while True:
            try:
                results, row_ids = self._forward(shard, needs, buffer, ran)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink_batches(shard, error)
                buffer.clear()
        work = (shard, buffer, results, row_ids, self._outlet.fence(), self._batch_tokens, started)
        self._pending.append(self._shard_writer.submit(self._write, *work))
        self._shards_since_shrink += 1
        if self._shards_since_shrink >= _SHARDS_BEFORE_RAISE:
            self._batch_tokens = min(self._most_tokens, self._batch_tokens * 2)
            self._shards_since_shrink = 0

    def _forward(
        self, shard: Shard, needs: list[tuple[ArtifactWriter, Need]], buffer: Buffer, ran: Callable[[int], None]
    ) -> tuple[list[_Result], NDArray[np.int64]]:
        """Codes in the buffer for each artifact that needs them, and the row ids in their order."""
        encoders = [writer.encoder(need, self._captured[writer.hook]) for writer, need in needs]
        blocks: list[list[torch.Tensor]] = [[] for _ in needs]
        row_ids: list[NDArray[np.int64]] = []
        tokens = 0
        for members in self._batches(shard):
            chosen = shard.sequences[members]
            batch = collate(
                [self.corpus.sequence(int(index)) for index in chosen],
                chosen,
                self.corpus.selection,
                device=self.device,
                rule=self.rule,
            )
            values = self._capture.run(batch)
            for (writer, _), encoder, into in zip(needs, encoders, blocks, strict=True):
                into.append(self._outlet.encode(encoder, values[writer.hook], buffer))
            row_ids.append(batch.rows)
            tokens += int(self.corpus.lengths[chosen].sum())
            if tokens < shard.n_tokens:
                ran(tokens)
        results = [
            _Result(writer, need, into, self._outlet.losses(encoder))
            for (writer, need), encoder, into in zip(needs, encoders, blocks, strict=True)
        ]
        return results, np.concatenate(row_ids)

    def _batches(self, shard: Shard) -> list[NDArray[np.int64]]:
        lengths = self.corpus.lengths[shard.sequences]
        return plan_batches(lengths, self._batch_tokens, equal_lengths=self.rule.equal_lengths)

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
        results: list[_Result],
        row_ids: NDArray[np.int64],
        arrived: Callable[[], Any],
        batch_tokens: int,
        started: float,
    ) -> None:
        try:
            arrived()
            for result in results:
                result.writer.write(
                    shard,
                    result.need,
                    result.blocks,
                    row_ids,
                    result.losses,
                    batch_tokens=batch_tokens,
                    seconds=lambda: time.perf_counter() - started,
                    executor=self._beside_model,
                )
        finally:
            self._outlet.release(buffer)

    def _collect(self, *, wait: bool) -> None:
        while self._pending and (wait or self._pending[0].done()):
            self._pending.pop(0).result()
