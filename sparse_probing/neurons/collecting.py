"""One pass of a model over a finished dataset, no activation stored: statistics, top contexts and class-by-level counts.

The plan (shards, batches, calibration rows) is that of an extraction to uint8 with the same spec, so the numbers are those
of the activations that it would store. Memory grows with neurons, bins, contexts and features, not with rows: only the
dataset itself (token ids, rows, labels) is held, as in an extraction. The counts are kept by the collectors.

Long because what a pass collects, how its parts merge and the pass itself must agree on every axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing import config, showing
from sparse_probing.activations.capture import Capture, collate
from sparse_probing.activations.naming import activations_digest
from sparse_probing.activations.plan import (
    Corpus,
    Shard,
    calibration_shards,
    plan_batches,
    plan_row_bytes,
    plan_shards,
    read_corpus,
)
from sparse_probing.activations.quantisation import LEVELS, Ranges, ranges_from_extremes, to_float16
from sparse_probing.activations.self_check import check_model
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import DataError, InputError
from sparse_probing.models.hooks import canonical_hook, find_points
from sparse_probing.models.loading import choose_device, load_model
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.neurons.contexts import ContextCollector, TopContexts, context_table
from sparse_probing.neurons.level_counts import LevelCollector, LevelTables
from sparse_probing.neurons.statistics import NeuronStatistics, StatisticsCollector, check_finite
from sparse_probing.store.filesystem import Location
from sparse_probing.store.labels import row_keys, split_codes
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.parquet import read_table

What = Literal["statistics", "contexts", "levels"]
EVERYTHING: tuple[What, ...] = get_args(What)
Progress = Callable[[int, int], None]
# Activations of calibration rows are kept on the host up to this many bytes, and those shards not run again.
_KEPT_BYTES = 1 << 30


@dataclass(frozen=True, eq=False, repr=False)
class Collected:
    """Results of one pass, or of one part of it, for every neuron of every layer.

    Attributes
    ----------
    digest:
        Of dataset, weights and spec: only parts that agree in it can be merged. For a model object there is no digest
        of the weights; the caller must then make sure that all parts used the same model.
    dataset_digest, spec, bos_token_id:
        The dataset, and how it was read.
    layers:
        What the model calls the layers; axis 0 of every array is in this order.
    shards, n_shards:
        Shards of the dataset processed so far, and their total number.
    ranges:
        Quantisation ranges, from training rows: bins of the histograms, and levels. None if neither was asked for.
    statistics, contexts, levels:
        None if not asked for. Statistics and contexts are of all rows, levels of the labelled ones by split.
    """

    digest: str
    dataset_digest: str
    spec: ExtractionSpec
    bos_token_id: int | None
    layers: tuple[int, ...]
    shards: frozenset[int]
    n_shards: int
    ranges: Ranges | None
    statistics: NeuronStatistics | None
    contexts: TopContexts | None
    levels: LevelTables | None

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        there = [name for name in EVERYTHING if getattr(self, name) is not None]
        columns = {"layer": [str(layer) for layer in self.layers[: 2 * showing.N_SHOWN]]}
        if self.statistics is not None:
            shown = slice(0, 2 * showing.N_SHOWN)
            columns["mean"] = [showing.digits(row.mean()) for row in self.statistics.mean[shown]]
            columns["low"] = [showing.digits(row.min()) for row in self.statistics.low[shown]]
            columns["high"] = [showing.digits(row.max()) for row in self.statistics.high[shown]]
            columns["sparsity"] = [showing.decimals(row.mean()) for row in self.statistics.sparsity[shown]]
        rest = len(self.layers) - len(columns["layer"])
        rows = "" if self.statistics is None else f" of {self.statistics.n_rows} rows"
        headline = f"Collected {', '.join(there)}{rows}: {len(self.shards)} of {self.n_shards} shards"
        return headline, columns, f"and {rest} more layers" if rest else ""

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())

    @property
    def is_complete(self) -> bool:
        """Whether every shard of the dataset has been taken in."""
        return len(self.shards) == self.n_shards

    def merge(self, other: Collected) -> Collected:
        """Both parts together, in any order.

        Raises
        ------
        InputError
            If the parts are not of one pass, share a shard, or do not hold the same kinds of results.
        """
        kinds = [tuple(getattr(part, name) is not None for name in EVERYTHING) for part in (self, other)]
        if self.digest != other.digest or self.shards & other.shards or kinds[0] != kinds[1]:
            raise InputError(
                f"Parts of passes {config.short(self.digest)} and {config.short(other.digest)} with "
                f"{len(self.shards & other.shards)} shards in common cannot be merged; expected disjoint parts of one pass.",
                remedy="Run collect with the same arguments but for shard=(i, n), each i once.",
            )
        return replace(
            self,
            shards=self.shards | other.shards,
            **{name: _merged(getattr(self, name), getattr(other, name)) for name in EVERYTHING},
        )

    def counts(self, feature: str, layer: int) -> dict[str, NDArray[Any]]:
        """Level counts of a feature in one of `layers`: the arguments of `probes.single.counts.LevelCounts`.

        Raises
        ------
        InputError
            If levels were not collected, or the feature or layer is not there.
        """
        if self.levels is None or layer not in self.layers:
            raise InputError(
                f"Level counts of layer {layer} asked for; there are "
                f"{f'layers {self.layers}' if self.levels is not None else 'none'}.",
                remedy='Collect with "levels" in what, and that layer in extraction.layers.',
            )
        return self.levels.of(feature, self.layers.index(layer))

    def context_table(
        self,
        dataset: Location,
        tokenizer: Any,
        *,
        neurons: Sequence[tuple[int, int]] | None = None,
        window: int = 12,
    ) -> pa.Table:
        """Top contexts as text (see `contexts.context_table`), with the dataset that they were collected from.

        Raises
        ------
        InputError
            If contexts were not collected, this is another dataset, or a neuron is not there.
        """
        if self.contexts is None:
            raise InputError("No contexts were collected.", remedy='Collect with "contexts" in what.')
        corpus = _read(dataset, self.spec, self.bos_token_id)
        if corpus.digest != self.dataset_digest:
            raise InputError(
                f"{dataset} has digest {config.short(corpus.digest)}; the contexts are of "
                f"{config.short(self.dataset_digest)}.",
                remedy="Give the dataset that the contexts were collected from.",
            )
        return context_table(self.contexts, corpus, tokenizer, layers=self.layers, neurons=neurons, window=window)


def collect(
    dataset: Location,
    model: ResolvedModel | nn.Module,
    spec: ExtractionSpec | None = None,
    *,
    what: Sequence[What] = EVERYTHING,
    features: Sequence[str] | None = None,
    n_bins: int = 100,
    n_contexts: int = 25,
    one_per_sequence: bool = True,
    ranges: Ranges | None = None,
    shard: tuple[int, int] = (0, 1),
    device: str = "auto",
    progress: Progress | None = None,
) -> Collected:
    """Run a model once over a finished dataset and collect what is asked for, for every layer and neuron.

    Quantisation ranges, from which bins and levels follow, are taken first, from `spec.calibration_rows` training rows at
    most: their activations are held meanwhile (1 GiB at most; what is beyond that is run twice).

    Level counts take 4 bytes · 256 · neurons · layers · 3 splits for each distinct column of labels: at most two a feature;
    one, and one more in all, where every row is labelled for every feature.

    Parameters
    ----------
    dataset:
        Folder of a finished dataset artifact.
    model:
        A resolved model, or a base model in evaluation mode on the device it is to run on.
    spec:
        Hook, layers, positions and batches as for an extraction; `storage_dtype` plays no part.
    what:
        Which of ``statistics``, ``contexts`` and ``levels``.
    features:
        Classification features to count levels for; all if absent.
    n_bins, n_contexts, one_per_sequence:
        See `StatisticsCollector` and `ContextCollector`.
    ranges:
        From `calibrate`, or those of another dataset; taken from this one if absent.
    shard:
        (i, n): take in only the i-th of n parts, 0 ≤ i < n; `Collected.merge` puts parts together. Machines of different
        makes may round differently: give all of them the ranges of one.
    device:
        Where a resolved model runs: ``auto``, ``cpu`` or ``cuda``.
    progress:
        Called with (tokens done, tokens in all) after each shard.

    Raises
    ------
    ArtifactError
        If the dataset is unfinished or damaged.
    InputError
        If hook, layers, features, device, part or what is asked for are not there.
    DataError
        If there is no training row to take ranges from, or an activation is not a finite number.
    """
    part, n_parts = shard
    if not 0 <= part < n_parts:
        raise InputError(f"Shard {part} of {n_parts} asked for; expected 0 ≤ i < n.", remedy="Count shards from 0.")
    if not what or set(what) - set(EVERYTHING):
        raise InputError(f"{tuple(what)} asked for; expected some of {', '.join(EVERYTHING)}.")
    one = _Pass(dataset, model, spec, device)
    counted = _labels(dataset, one.corpus, features) if "levels" in what else None
    mine = [shard for shard in one.shards if shard.index % n_parts == part]
    if ranges is None and set(what) & {"statistics", "levels"}:
        ranges = one.calibrate(keep=frozenset(shard.index for shard in mine))
    if ranges is not None and ranges.scale.shape != one.shape:
        raise InputError(
            f"Ranges of {ranges.scale.shape} (layers, neurons) given; the model has {one.shape}.",
            remedy="Calibrate with the same model, hook and layers.",
        )
    statistics = contexts = levels = None
    if "statistics" in what and ranges is not None:
        last = ranges.offset + np.float32(LEVELS) * ranges.scale
        statistics = StatisticsCollector(ranges.offset, last, n_bins=n_bins, device=str(one.device))
    if "contexts" in what:
        contexts = ContextCollector(*one.shape, n_contexts, one_per_sequence=one_per_sequence, device=str(one.device))
    if counted is not None and ranges is not None:
        levels = LevelCollector(ranges, *counted, split_codes(one.corpus.rows), device=str(one.device))
    total, done = sum(shard.n_tokens for shard in mine), 0
    for current in mine:
        for rows, values in one.batches([current]):
            if statistics is not None:
                statistics.update(values)
            if contexts is not None:
                contexts.update(values, rows, one.corpus.selection.sequence[rows])
            if levels is not None:
                levels.update(values, rows)
        done += current.n_tokens
        if progress is not None:
            progress(done, total)
    return Collected(
        digest=one.digest,
        dataset_digest=one.corpus.digest,
        spec=one.spec,
        bos_token_id=one.bos_token_id,
        layers=one.layers,
        shards=frozenset(shard.index for shard in mine),
        n_shards=len(one.shards),
        ranges=ranges,
        statistics=statistics.result() if statistics is not None else None,
        contexts=contexts.result() if contexts is not None else None,
        levels=levels.finish() if levels is not None else None,
    )


def calibrate(
    dataset: Location, model: ResolvedModel | nn.Module, spec: ExtractionSpec | None = None, *, device: str = "auto"
) -> Ranges:
    """Quantisation ranges from the first training rows: those that an extraction to uint8 with this spec would use.

    Raises
    ------
    ArtifactError, InputError, DataError
        As `collect`.
    """
    return _Pass(dataset, model, spec, device).calibrate()


class _Pass:
    """A model, a dataset and the plan of running one over the other."""

    def __init__(
        self, dataset: Location, model: ResolvedModel | nn.Module, spec: ExtractionSpec | None, device: str
    ) -> None:
        if spec is not None and spec.neurons is not None:
            raise InputError(
                f"{len(spec.neurons)} chosen neurons in the spec; a pass without storage tells of whole layers.",
                remedy="Name extraction.layers instead of extraction.neurons.",
            )
        self.spec = (spec or ExtractionSpec()).model_copy(update={"storage_dtype": "uint8"})
        resolved = model if isinstance(model, ResolvedModel) else None
        self._model = model if isinstance(model, nn.Module) else load_model(model, device=choose_device(device))
        self.device = next(self._model.parameters()).device
        settings = getattr(self._model, "config", None)
        self.bos_token_id = getattr(settings, "bos_token_id", None)
        self.corpus = _read(dataset, self.spec, self.bos_token_id)
        if resolved is not None:
            self.digest = activations_digest(self.spec, resolved, self.corpus.digest)
        else:
            self.digest = config.digest(
                self.spec, inputs={"dataset": self.corpus.digest}, version=config.EXTRACTION_VERSION
            )
        self._hook = canonical_hook(self.spec.hook)
        self._points = find_points(self._model, self._hook, self.spec.layers)
        self.layers = tuple(point.layer for point in self._points)
        self.shape = (len(self.layers), self._points[0].width)
        self._rule = check_model(self._model, {self._hook: self._points}, longest=int(self.corpus.lengths.max()))
        self.shards = plan_shards(
            self.corpus, shard_tokens=self.spec.shard_tokens, row_bytes=plan_row_bytes(self._model, resolved)
        )
        self._kept: dict[int, list[tuple[NDArray[np.int64], torch.Tensor]]] = {}

    def batches(self, shards: Sequence[Shard]) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """Rows, and their (n_layers, n_rows, n_neurons) activations on the device, batch by batch."""
        with Capture(self._model, {self._hook: self._points}, self.corpus.selection) as capture:
            for shard in shards:
                if shard.index in self._kept:
                    for rows, values in self._kept.pop(shard.index):
                        yield rows, values.to(self.device)
                    continue
                for members in plan_batches(
                    self.corpus.lengths[shard.sequences],
                    self.spec.batch_tokens,
                    equal_lengths=self._rule.equal_lengths,
                ):
                    chosen = shard.sequences[members]
                    batch = collate(
                        [self.corpus.sequence(int(index)) for index in chosen],
                        chosen,
                        self.corpus.selection,
                        device=self.device,
                        rule=self._rule,
                    )
                    yield batch.rows, self._run(capture, batch)

    def calibrate(self, keep: frozenset[int] = frozenset()) -> Ranges:
        """Smallest and largest float16 value of each neuron in the calibration shards.

        The activations of shards in `keep` are held, as many as there is room for, until `batches` comes to them.
        """
        shards = calibration_shards(self.shards, self.spec.calibration_rows)
        if not shards:
            raise DataError(
                "No training row to take quantisation ranges from.",
                remedy="Give ranges, use a dataset with a training split, or collect contexts alone.",
            )
        low = torch.full(self.shape, torch.inf, device=self.device)
        high, total = -low, torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        n_rows, room = 0, _KEPT_BYTES
        for shard in shards:
            held = []
            for rows, values in self.batches([shard]):
                check_finite(values)
                for layer in range(len(self.layers)):
                    stored = to_float16(values[layer]).float()
                    low[layer] = torch.minimum(low[layer], stored.amin(dim=0))
                    high[layer] = torch.maximum(high[layer], stored.amax(dim=0))
                    total[layer] += stored.sum(dim=0, dtype=torch.float64)
                n_rows += len(rows)
                room -= values.nbytes if shard.index in keep else 0
                if shard.index in keep and room >= 0:
                    held.append((rows, values.cpu()))
            if held and room >= 0:
                self._kept[shard.index] = held
        mean = (total / n_rows).float()
        return ranges_from_extremes(*(array.cpu().numpy() for array in (low, high, mean)))

    def _run(self, capture: Capture, batch: Any) -> torch.Tensor:
        try:
            return capture.run(batch)[self._hook]
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"A batch of {batch.shape[0]} × {batch.shape[1]} tokens does not fit into the memory of {self.device}.",
                remedy="Lower extraction.batch_tokens, or use fewer extraction.layers.",
            ) from error


def _read(dataset: Location, spec: ExtractionSpec, bos_token_id: int | None) -> Corpus:
    return read_corpus(dataset, bos_token_id=bos_token_id, next_token=spec.next_token, positions=spec.positions)


def _labels(
    dataset: Location, corpus: Corpus, features: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Classification features and the (n_rows, n_features) labels of a corpus' rows: +1, −1, or 0 without a label."""
    entry = read_manifest(dataset).files["labels.parquet"]
    table = read_table(dataset / "labels.parquet", entry=entry)
    table = table.filter(pc.is_valid(table.column("label")))
    found = table.column("feature").combine_chunks().dictionary_encode()
    known = found.dictionary.to_pylist()
    names = tuple(dict.fromkeys(known if features is None else features))
    if not names or not set(names) <= set(known):
        raise InputError(
            f"Level counts of {', '.join(names) or 'no feature'} asked for; {dataset} has labels of "
            f"{', '.join(known) or 'no classification feature'}.",
            remedy='Choose features that are there, or leave "levels" out of what.',
        )
    column = np.array([names.index(name) if name in names else -1 for name in known])[found.indices.to_numpy()]
    keys, wanted = row_keys(corpus.rows), row_keys(table)
    order = np.argsort(keys, kind="stable")
    row = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    # Without a row: the label of a first position that is read one token earlier, or outside of what pooling may use.
    kept = (keys[row] == wanted) & (column >= 0)
    labels = np.zeros((len(keys), len(names)), dtype=np.int8)
    labels[row[kept], column[kept]] = table.column("label").to_numpy()[kept]
    return names, labels


def _merged(one: Any, two: Any) -> Any:
    return one.merge(two) if one is not None else None
