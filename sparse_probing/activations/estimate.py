"""The cost of an extraction before it begins: counts, bytes, memory, and time from a short trial.

Nothing is written. Sizes are those before compression: an upper bound, which zstd takes to about three quarters.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing.activations.capture import BatchRule, Capture, collate
from sparse_probing.activations.columns import choose_columns
from sparse_probing.activations.encoding import BUFFERS
from sparse_probing.activations.plan import (
    Corpus,
    calibration_shards,
    plan_batches,
    plan_row_bytes,
    plan_shards,
    read_corpus,
)
from sparse_probing.activations.self_check import check_model
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import InputError
from sparse_probing.models.hooks import HookPoint, canonical_hook
from sparse_probing.models.loading import choose_device, load_model
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.matrices import STORAGE_DTYPES

TRIAL_TOKENS = 4096
TRIAL_SECONDS = 20.0
# Run first: they tell how large the trial's batches may be for it to end in time.
_GAUGE_TOKENS = 16
_GAUGE_PASSES = 5
_GAUGE_SECONDS = 1.0
# What Python, torch and transformers take before any model is there.
_BASE_BYTES = 600 << 20


@dataclass(frozen=True)
class Estimate:
    """The cost of one pass: of all its extractions together.

    Attributes
    ----------
    n_sequences, n_tokens, n_rows:
        Sequences and tokens that are run, and rows that are stored.
    n_layers, n_neurons:
        Layers stored, those of each hook counted, and values of the widest (stored or not).
    layer_bytes, stored_bytes, staged_bytes:
        On disk before compression: the largest layer, all layers, and what is there only until quantisation ranges are known.
    host_bytes, device_bytes:
        Largest memory on the host and on a GPU (0 without one).
    tokens_per_second, seconds:
        From the trial; None without one.
    """

    n_sequences: int
    n_tokens: int
    n_rows: int
    n_layers: int
    n_neurons: int
    layer_bytes: int
    stored_bytes: int
    staged_bytes: int
    host_bytes: int
    device_bytes: int
    tokens_per_second: float | None
    seconds: float | None

    @property
    def disk_bytes(self) -> int:
        """Largest use of the disk."""
        return self.stored_bytes + self.staged_bytes


def estimate(
    dataset: Location,
    resolved: ResolvedModel,
    spec: ExtractionSpec | Sequence[ExtractionSpec],
    *,
    device: str = "auto",
    trial_tokens: int = TRIAL_TOKENS,
) -> Estimate:
    """Estimate an extraction, or several in one pass.

    The trial runs about `trial_tokens` tokens through the model (none if 0), fewer where they would take longer than
    `TRIAL_SECONDS`.

    Raises
    ------
    ArtifactError, InputError
        As `extract_dataset` does.
    """
    specs = [spec] if isinstance(spec, ExtractionSpec) else list(spec)
    device = choose_device(device)
    model = load_model(resolved, device=device)
    corpus = read_corpus(
        dataset,
        bos_token_id=getattr(getattr(model, "config", None), "bos_token_id", None),
        next_token=specs[0].next_token,
        positions=specs[0].positions,
    )
    return estimate_loaded(model, corpus, resolved, specs, device=device, trial_tokens=trial_tokens)


def estimate_loaded(
    model: nn.Module,
    corpus: Corpus,
    resolved: ResolvedModel,
    specs: Sequence[ExtractionSpec],
    *,
    device: str,
    trial_tokens: int = TRIAL_TOKENS,
) -> Estimate:
    """As `estimate`, of a model and a corpus that are in memory."""
    first = specs[0]
    shards = plan_shards(corpus, shard_tokens=first.shard_tokens, row_bytes=plan_row_bytes(model, resolved))
    n_rows, n_tokens = len(corpus.selection), int(corpus.lengths.sum())
    most_rows = max(shard.n_rows for shard in shards)
    staged_rows = sum(shard.n_rows for shard in calibration_shards(shards, first.calibration_rows))
    item = next(model.parameters()).element_size()
    # A pass holds its rows of all layers, and of one layer some tensors of the widest hook's width.
    longest = max(first.batch_tokens, int(corpus.lengths.max()))
    points: dict[str, dict[int, HookPoint]] = {}
    n_layers = layer_bytes = stored_bytes = staged_bytes = largest = 0
    for one in specs:
        its_points, columns = choose_columns(model, one)
        points.setdefault(canonical_hook(one.hook), {}).update((point.layer, point) for point in its_points)
        item_bytes = STORAGE_DTYPES[one.storage_dtype].itemsize
        n_layers += len(its_points)
        layer_bytes = max(layer_bytes, n_rows * max(columns.counts) * item_bytes)
        stored_bytes += n_rows * columns.n_values * item_bytes
        # What is quantised is staged as float16 first.
        staged_bytes += staged_rows * columns.n_values * 2 if one.storage_dtype == "uint8" else 0
        largest += most_rows * columns.n_values * max(item_bytes, 2)
    hooked = {hook: [found[layer] for layer in sorted(found)] for hook, found in points.items()}
    width = max(point.width for found in hooked.values() for point in found)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    captured = sum(point.width for found in hooked.values() for point in found)
    working = longest * width * item * 8 + min(longest, most_rows) * captured * 4
    kind = "cuda" if device.startswith("cuda") else "cpu"
    on_gpu = kind == "cuda"
    tokens_per_second = None
    if trial_tokens:
        sequences = shards[0].sequences
        end = time.perf_counter() + TRIAL_SECONDS
        tokens_per_second = _gauge(model, corpus.sequence(int(sequences[0]))[:_GAUGE_TOKENS], torch.device(device))
        # One batch warms up, one at least is counted. Where a sequence takes longer, the few tokens must do.
        most = int(tokens_per_second * (end - time.perf_counter()) / 4)
        if most >= corpus.lengths[sequences].max():
            with Capture(model, hooked, corpus.selection) as capture:
                tokens_per_second = _trial(
                    capture,
                    corpus,
                    sequences,
                    device=torch.device(device),
                    rule=check_model(model, hooked, longest=int(corpus.lengths.max())),
                    batch_tokens=min(first.batch_tokens, max(1, trial_tokens // 2), most),
                    trial_tokens=trial_tokens,
                    end=end,
                )
    return Estimate(
        n_sequences=len(corpus.lengths),
        n_tokens=n_tokens,
        n_rows=n_rows,
        n_layers=n_layers,
        n_neurons=width,
        layer_bytes=layer_bytes,
        stored_bytes=stored_bytes,
        staged_bytes=staged_bytes,
        host_bytes=_BASE_BYTES + BUFFERS[kind] * largest + corpus.tokens.nbytes + (0 if on_gpu else weights + working),
        device_bytes=weights + working if on_gpu else 0,
        tokens_per_second=tokens_per_second,
        seconds=n_tokens / tokens_per_second if tokens_per_second else None,
    )


def check_space(cost: Estimate, root: Location, spec: ExtractionSpec) -> None:
    """Refuse an extraction that disk or memory cannot hold. A remote store is taken to be large enough.

    Raises
    ------
    InputError
        If they cannot; the message names a setting with which they could.
    """
    if root.is_local:
        existing = Path(root.path)
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        if cost.disk_bytes > free:
            raise InputError(
                f"The extraction needs up to {_size(cost.disk_bytes)} of disk; {existing} has {_size(free)}.",
                remedy=_what_would_fit(cost, free, spec),
            )
    memory = _available_memory()
    if memory is not None and cost.host_bytes > memory:
        raise InputError(
            f"The extraction needs about {_size(cost.host_bytes)} of memory; {_size(memory)} are available.",
            remedy="Lower extraction.shard_tokens and extraction.batch_tokens, or the model's dtype.",
        )
    if cost.device_bytes and torch.cuda.is_available():
        on_device = torch.cuda.mem_get_info()[1]
        if cost.device_bytes > on_device:
            raise InputError(
                f"The extraction needs about {_size(cost.device_bytes)} on the GPU; it has {_size(on_device)}.",
                remedy="Lower extraction.batch_tokens or the model's dtype, or choose another device.",
            )


def _gauge(model: nn.Module, tokens: NDArray[np.int32], device: torch.device) -> float:
    """Tokens per second of the model over a few tokens: the fastest of some passes, the first of which does not count.

    Other work on the machine may hold up one pass; it seldom holds up all of them.
    """
    inputs = torch.from_numpy(tokens.astype(np.int64))[None].to(device)
    fastest, end = float("inf"), None
    with torch.inference_mode():
        for _ in range(1 + _GAUGE_PASSES):
            started = time.perf_counter()
            model(input_ids=inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if end is None:
                end = now + _GAUGE_SECONDS
                continue
            fastest = min(fastest, now - started)
            if now >= end:
                break
    return len(tokens) / fastest


def _trial(
    capture: Capture,
    corpus: Corpus,
    sequences: NDArray[np.int64],
    *,
    device: torch.device,
    rule: BatchRule,
    batch_tokens: int,
    trial_tokens: int,
    end: float,
) -> float:
    """Tokens per second over the first batches of a shard, after one that is not counted, until `end` at the latest."""
    batches = plan_batches(corpus.lengths[sequences], batch_tokens, equal_lengths=rule.equal_lengths)
    done, started = 0, 0.0
    for index, members in enumerate([batches[0], *batches]):
        batch = collate(
            [corpus.sequence(int(index)) for index in sequences[members]],
            sequences[members],
            corpus.selection,
            device=device,
            rule=rule,
        )
        begun = time.perf_counter()
        if index == 1:
            started = begun
        capture.run(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index:
            done += batch.shape[0] * batch.shape[1]
            now = time.perf_counter()
            if done >= trial_tokens or now + (now - begun) > end:
                break
    return done / (time.perf_counter() - started)


def _what_would_fit(cost: Estimate, free: int, spec: ExtractionSpec) -> str:
    smallest = cost.stored_bytes // STORAGE_DTYPES[spec.storage_dtype].itemsize
    if spec.storage_dtype != "uint8" and smallest <= free:
        return f"Use storage_dtype uint8, which needs {_size(smallest)}, or another data folder."
    per_layer = max(1, cost.disk_bytes // cost.n_layers)
    if free >= per_layer:
        return (
            f"Keep at most {free // per_layer} of {cost.n_layers} layers (extraction.layers), or another data folder."
        )
    return "Free space, choose another data folder, or build a smaller dataset."


def _available_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
