"""Every neuron of a layer as a probe of its own: `score_neurons`, `score_features`, `score_counts`.

The numbers come from class-by-level counts (`counts`), so their cost hardly depends on the number of samples. This module
puts counts, fits (`levels`) and metrics together and turns levels into activations; ranking lists, intervals and
permutation nulls are elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError
from sparse_probing.probes.counts import (
    N_LEVELS,
    LevelCounts,
    check_labels,
    check_quantisation,
    count_tables,
    label_columns,
    quantise,
)
from sparse_probing.probes.levels import (
    WIDTH_STEP,
    Moments,
    best_cuts,
    compact,
    fit_logistic,
    moments,
    mutual_information,
    power_sums,
)
from sparse_probing.probes.metrics import curve_metrics, curve_metrics_cumulative, threshold_metrics
from sparse_probing.probes.splits import group_split
from sparse_probing.schemas import CLASSIFICATION_METRICS, SPLITS

Floats = NDArray[np.float64]
# Rows (feature × neuron) worked on at once. With fewer, two threads spend their time on the interpreter lock
# (measured on 11 features: 640 rows 0.51 s a layer, 6,400 rows 0.18 s).
_BLOCK_ROWS = 6400


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """One-neuron probes of one feature, for every neuron of a layer; every array is (n_neurons,).

    Attributes
    ----------
    coef, intercept:
        Logistic regression in units of activation: log-odds = intercept + coef * activation.
    coef_scaled:
        The same coefficient per ten training standard deviations, as regularised: coef * 10 * activation_std.
    activation_std:
        Population standard deviation over the labelled training rows; a neuron constant there has coef 0.
    converged:
        Whether Newton's method met its tolerance.
    best_threshold, best_direction:
        Positive where ``best_direction * (activation − best_threshold) > 0``: the highest train MCC of any threshold,
        midway (to a level) between the activations on either side.
    mean_difference:
        Mean activation of positive less that of negative training rows.
    f_statistic:
        One-way F of the two classes on train.
    mutual_information:
        Nats, on train, activations in at most 16 bins of nearly equal frequency.
    metrics:
        ``metrics[split][metric]`` of the logistic regression: predicted positive where the log-odds exceed 0.
    best_metrics:
        The same at the best threshold; score metrics along its direction.
    class_sizes:
        (3, 2) labelled samples by split (train, validation, test) and class (negative, positive).
    """

    coef: Floats
    intercept: Floats
    coef_scaled: Floats
    activation_std: Floats
    converged: NDArray[np.bool_]
    best_threshold: Floats
    best_direction: NDArray[np.int8]
    mean_difference: Floats
    f_statistic: Floats
    mutual_information: Floats
    metrics: Mapping[str, Mapping[str, Floats]]
    best_metrics: Mapping[str, Mapping[str, Floats]]
    class_sizes: NDArray[np.int64]

    @property
    def n_neurons(self) -> int:
        """Number of neurons scored."""
        return len(self.coef)


def score_neurons(
    X: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    split: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    c: float = 1.0,
    rng: np.random.Generator | int = 0,
    n_threads: int | None = None,
) -> NeuronScores:
    """Score every neuron as a probe of one feature.

    Parameters
    ----------
    X:
        (n_samples, n_neurons): uint8 levels, with activation = offset + scale * level; or floats, which are first
        quantised to 256 uniform levels of each neuron's training range.
    y:
        (n_samples,) +1, -1, or 0 for not labelled.
    groups:
        (n_samples,) what must not be split; only used to make a split where none is given.
    split:
        (n_samples,) 0 train, 1 validation, 2 test. If absent: 60/20/20 by `group_split`, by sample without groups.
    c:
        Inverse regularisation of the logistic regression, as in scikit-learn.
    rng:
        Generator or seed of the split that is made where none is given.
    n_threads:
        Threads over chunks of neurons; up to four if absent. Results do not depend on it.

    Raises
    ------
    DataError
        If shapes, labels or split codes do not fit, an activation is not finite, or train lacks one class.
    """
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise DataError(f"y has shape {labels.shape}; expected (n_samples,).", remedy="Use score_features for several.")
    return score_features(
        X, labels[:, None], groups, split=split, offset=offset, scale=scale, c=c, rng=rng, n_threads=n_threads
    )[0]


def score_features(
    X: ArrayLike,
    Y: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    split: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    c: float = 1.0,
    rng: np.random.Generator | int = 0,
    n_threads: int | None = None,
) -> list[NeuronScores]:
    """Score every neuron for several features that share rows: one counting pass serves all of them.

    Parameters
    ----------
    Y:
        (n_samples, n_features) +1, -1, or 0 for not labelled. Other parameters as in `score_neurons`.

    Raises
    ------
    DataError
        As in `score_neurons`; the feature is named by its column.
    """
    table = np.asarray(X)
    if table.ndim != 2 or table.shape[1] == 0:
        raise DataError(f"X has shape {table.shape}; expected (n_samples, n_neurons) with at least one neuron.")
    if split is None:
        split = default_split(Y, groups, table.shape[0], rng)
    labels, codes = check_labels(Y, split, table.shape[0])
    check_classes(labels, codes)
    if table.dtype == np.uint8:
        low, step = check_quantisation(offset, scale, table.shape[1])
    elif np.issubdtype(table.dtype, np.floating) or np.issubdtype(table.dtype, np.integer):
        if offset is not None or scale is not None:
            raise DataError(f"offset and scale given with X of type {table.dtype}; they belong to uint8 levels.")
        table, low, step = quantise(table, (codes == 0) & (labels != 0).any(axis=1))
    else:
        raise DataError(f"X has type {table.dtype}; expected uint8 levels or floats.")

    n_features = labels.shape[1]
    columns = label_columns(labels, codes)
    workers = n_threads or min(4, os.cpu_count() or 1)
    n_chunks = -(-table.shape[1] * n_features // _BLOCK_ROWS)
    n_chunks = -(-n_chunks // workers) * workers if n_chunks > 1 else 1
    chunk = max(1, -(-table.shape[1] // n_chunks))
    chunks = [slice(start, min(start + chunk, table.shape[1])) for start in range(0, table.shape[1], chunk)]
    rooms = [_Workspace(n_features * chunk) for _ in range(min(workers, len(chunks)))]

    def score(neurons: slice) -> dict[str, NDArray[Any]]:
        room = rooms.pop()
        scored = _score_chunk(count_tables(table, columns, neurons), columns.positive, columns.labelled, room, c)
        rooms.append(room)
        return scored

    results = [_Results(table.shape[1]) for _ in range(n_features)]
    if len(rooms) == 1:
        scored_chunks = list(map(score, chunks))
    else:
        with ThreadPoolExecutor(len(rooms)) as pool:
            scored_chunks = list(pool.map(score, chunks))
    for neurons, scored in zip(chunks, scored_chunks, strict=True):
        width = neurons.stop - neurons.start
        for feature, result in enumerate(results):
            result.place(neurons, scored, slice(feature * width, (feature + 1) * width))
    sizes = _class_sizes(labels, codes)
    return [_assemble(result.arrays, low, step, sizes[feature]) for feature, result in enumerate(results)]


def score_counts(counts: LevelCounts, *, c: float = 1.0) -> NeuronScores:
    """The same scores from counts gathered elsewhere, shard by shard: equal to `score_neurons` to the last bit.

    Raises
    ------
    DataError
        If train lacks one class.
    """
    sizes = counts.class_sizes()
    if sizes[0].min() == 0:
        raise DataError(
            f"Training counts hold {sizes[0, 1]} positive and {sizes[0, 0]} negative samples; a probe needs both.",
            remedy="Count more shards, or split otherwise.",
        )
    room, result = _Workspace(min(_BLOCK_ROWS, counts.n_neurons)), _Results(counts.n_neurons)
    for start in range(0, counts.n_neurons, _BLOCK_ROWS):
        neurons = slice(start, min(start + _BLOCK_ROWS, counts.n_neurons))
        width = neurons.stop - start
        negative, positive = np.moveaxis(counts.counts[:, :, neurons], 1, 0).astype(np.float64)
        tables = list(np.stack([negative + positive, positive], axis=-1))
        result.place(neurons, _score_chunk(tables, (1,), (0,), room, c), slice(0, width))
    return _assemble(result.arrays, counts.offset, counts.scale, sizes)


def default_split(
    Y: ArrayLike, groups: ArrayLike | None, n_samples: int, rng: np.random.Generator | int = 0
) -> NDArray[np.int8]:
    """60/20/20 by group (by sample without groups), stratified by the rows' patterns of labels where those are few."""
    labels = np.asarray(Y)
    labels = labels[:, None] if labels.ndim == 1 else labels
    if len(labels) != n_samples:
        raise DataError(f"{n_samples} rows of activations with {len(labels)} labels.", remedy="Give one label per row.")
    pattern = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    return group_split(np.arange(n_samples) if groups is None else groups, pattern, rng=rng)


def check_classes(labels: NDArray[np.int8], split: NDArray[np.int8]) -> None:
    """Raise a DataError unless every feature has both classes on train."""
    training = labels[split == 0]
    n_positive, n_negative = (training > 0).sum(axis=0), (training < 0).sum(axis=0)
    poor = np.flatnonzero((n_positive == 0) | (n_negative == 0))
    if len(poor):
        feature = int(poor[0])
        raise DataError(
            f"Feature {feature} has {n_positive[feature]} positive and {n_negative[feature]} negative training rows; "
            "a probe needs both classes.",
            remedy="Add labelled rows, drop the feature, or split otherwise.",
        )


def trainable_features(Y: ArrayLike, split: ArrayLike) -> NDArray[np.bool_]:
    """(n_features,) whether train holds both classes of the feature: which columns `score_features` accepts."""
    training = np.asarray(Y)[np.asarray(split) == 0]
    return np.asarray((training > 0).any(axis=0) & (training < 0).any(axis=0))


def _class_sizes(labels: NDArray[np.int8], split: NDArray[np.int8]) -> NDArray[np.int64]:
    """(n_features, 3, 2) labelled samples by split and class."""
    per_split = [
        [(labels[split == code] < 0).sum(axis=0), (labels[split == code] > 0).sum(axis=0)] for code in range(3)
    ]
    return np.asarray(np.moveaxis(np.array(per_split), -1, 0), np.int64)


@dataclass(frozen=True, eq=False)
class _Table:
    """Compact counts of one split and their sums along the columns, (n_rows, n_columns) each."""

    positives: Floats
    totals: Floats
    summed_positives: Floats
    summed_totals: Floats

    def pick(self, rows: NDArray[np.intp]) -> _Table:
        """A copy of some rows."""
        return _Table(self.positives[rows], self.totals[rows], self.summed_positives[rows], self.summed_totals[rows])

    def ranked(self, work: Floats | None = None) -> dict[str, Floats]:
        """Score metrics, the score falling along the columns."""
        return curve_metrics_cumulative(self.positives, self.totals, self.summed_positives, self.summed_totals, work)


class _Workspace:
    """Memory for the compact tables of one chunk, kept from chunk to chunk: fresh memory costs more than the sums."""

    def __init__(self, n_rows: int) -> None:
        self._flat = [np.empty(n_rows * N_LEVELS) for _ in range(4 * len(SPLITS) + 1)]
        self._whole = np.empty(n_rows * N_LEVELS, np.int64)

    def gather(
        self, counted: list[NDArray[Any]], positive: NDArray[np.intp], labelled: int, cells: NDArray[np.intp]
    ) -> tuple[list[_Table], Floats]:
        """Compact tables of (n_features, n_neurons, n_columns) cells of each split's counts, and scratch of their shape.

        Cells number (neuron, level); `positive` is each feature's column of the counts, `labelled` the one they share.
        """
        shape = (cells.shape[0] * cells.shape[1], cells.shape[2])
        free = [flat[: cells.size].reshape(shape) for flat in self._flat]
        whole = self._whole[: cells.size].reshape(shape)
        cells = cells * counted[0].shape[-1]
        at_positive, at_labelled = (cells + positive[:, None, None]).reshape(shape), (cells + labelled).reshape(shape)
        tables = []
        for code, table in enumerate(counted):
            p, t, summed_p, summed_t = free[4 * code : 4 * code + 4]
            for where, part, summed in ((at_positive, p, summed_p), (at_labelled, t, summed_t)):
                taken = table.reshape(-1).take(where)
                np.copyto(part, taken)
                # In integers, which is several times faster than in floats.
                np.copyto(whole, taken, casting="unsafe")
                np.cumsum(whole, axis=1, out=whole)
                np.copyto(summed, whole)
            tables.append(_Table(p, t, summed_p, summed_t))
        return tables, free[-1]


class _Results:
    """Flat arrays of one feature by name, filled block by block."""

    def __init__(self, n_neurons: int) -> None:
        self.n_neurons = n_neurons
        self.arrays: dict[str, NDArray[Any]] = {}

    def place(self, neurons: slice, scored: dict[str, NDArray[Any]], rows: slice) -> None:
        for name, value in scored.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty(self.n_neurons, value.dtype)
            self.arrays[name][neurons] = value[rows]


def _score_chunk(
    counted: list[NDArray[Any]], positive: tuple[int, ...], labelled: tuple[int, ...], room: _Workspace, c: float
) -> dict[str, NDArray[Any]]:
    """All quantities of (feature, neuron) rows, feature by feature, in units of levels, under flat names.

    Levels that do not occur are left out, and rows are turned so that their first columns speak for the positive class:
    the fitted slope has the sign of the mean difference, and cumulative sums run along the falling score. Rows are worked
    on together with others of about as many levels; their results do not depend on which.

    Parameters
    ----------
    counted:
        (n_neurons, 256, n_columns) for each split (see `counts.count_tables`).
    positive, labelled:
        Each feature's columns.
    """
    n_features, n_neurons = len(positive), counted[0].shape[0]
    sums = np.moveaxis(power_sums(np.moveaxis(counted[0], 1, 2).astype(np.float64)), 1, 0)
    about = moments(sums[list(positive)].reshape(-1, 3), sums[list(labelled)].reshape(-1, 3))
    up = about.mean_difference > 0
    out: dict[str, NDArray[Any]] = {}
    for column in sorted(set(labelled)):
        alike = np.flatnonzero(np.array(labelled) == column)
        occupied = (counted[0][:, :, column] + counted[1][:, :, column] + counted[2][:, :, column]) > 0
        width = -(-np.count_nonzero(occupied, axis=1) // WIDTH_STEP) * WIDTH_STEP
        for one in np.unique(width):
            neurons = np.flatnonzero(width == one)
            rows = (alike[:, None] * n_neurons + neurons).ravel()
            turned = up[rows].reshape(len(alike), -1).astype(np.intp)
            place = np.arange(len(neurons))
            both_columns, both_levels = compact(occupied[neurons], int(one))
            cells = both_columns[turned, place] + (neurons * N_LEVELS)[:, None]
            levels = both_levels[turned, place].reshape(len(rows), -1)
            tables, work = room.gather(counted, np.array(positive)[alike], column, cells)
            for name, value in _score_rows(tables, levels, _pick(about, rows, up[rows]), c, work).items():
                if name not in out:
                    out[name] = np.empty(n_features * n_neurons, value.dtype)
                out[name][rows] = value
    sign, top = np.where(up, -1.0, 1.0), np.where(up, N_LEVELS - 1.0, 0.0)
    out["intercept"] += out["slope"] * top
    out["slope"] *= sign
    out["threshold"] = top + sign * out["threshold"]
    out["direction"] = (out["direction"] * sign).astype(np.int8)
    return out | {"std": about.std, "mean_difference": about.mean_difference, "f_statistic": about.f_statistic}


def _pick(about: Moments, rows: NDArray[np.intp], up: NDArray[np.bool_]) -> Moments:
    """Moments of some rows, of the levels as `compact` counts them."""
    mean = about.mean[rows]
    return Moments(
        n_positive=about.n_positive[rows],
        n_total=about.n_total[rows],
        mean=np.where(up, N_LEVELS - 1 - mean, mean),
        std=about.std[rows],
        mean_difference=-np.abs(about.mean_difference[rows]),
        f_statistic=about.f_statistic[rows],
    )


def _score_rows(
    tables: list[_Table], levels: Floats, about: Moments, c: float, work: Floats
) -> dict[str, NDArray[Any]]:
    """Fits, cuts and metrics of rows with compact tables, for levels as `compact` counts them."""
    train = tables[0]
    sums = train.summed_positives, train.summed_totals
    fit = fit_logistic(train.positives, train.totals, *sums, levels, about, c)
    cuts = best_cuts(*sums, levels, about)
    out: dict[str, NDArray[Any]] = {
        "intercept": fit.intercept,
        "slope": fit.slope,
        "converged": fit.converged,
        "threshold": cuts.threshold,
        "direction": cuts.direction,
        "mutual_information": mutual_information(*sums, about),
    }
    # Without a slope the score is 0 everywhere: never positive, one tie.
    flat = fit.slope == 0
    crossing = np.where(flat, -1.0, -fit.intercept / np.where(flat, -1.0, fit.slope))
    n_below = np.count_nonzero(levels < crossing[:, None], axis=1)
    n_below_cut = np.count_nonzero(levels < cuts.threshold[:, None], axis=1)
    at_fit = threshold_metrics(*np.stack([_first(n_below, part) for part in tables], axis=1))
    confusion = np.stack([_first(n_below_cut, part) for part in tables], axis=1)
    tp, fp, fn, tn = confusion
    swapped = np.stack([fn, tn, tp, fp])
    at_best = threshold_metrics(*np.where(cuts.direction < 0, confusion, swapped))
    other, level = np.flatnonzero((cuts.direction > 0) | flat), np.flatnonzero(flat)
    for name, part, fitted, best in zip(SPLITS, tables, _by_split(at_fit), _by_split(at_best), strict=True):
        ranked = part.ranked(work)
        ranked_best = {metric: value.copy() for metric, value in ranked.items()}
        if len(other):
            for metric, value in _along(cuts.direction[other], part.pick(other)).items():
                ranked_best[metric][other] = value
        if len(level):
            for metric, value in curve_metrics(
                part.summed_positives[level, -1:], part.summed_totals[level, -1:]
            ).items():
                ranked[metric][level] = value
        for metric in CLASSIFICATION_METRICS:
            out[f"{name}/{metric}"] = (fitted | ranked)[metric]
            out[f"{name}/best/{metric}"] = (best | ranked_best)[metric]
    return out


def _first(n_columns: NDArray[np.intp], table: _Table) -> Floats:
    """(4, n_rows) true and false positives, false and true negatives of "positive in the first columns"."""
    cumulative_p, cumulative_t = table.summed_positives, table.summed_totals
    rows, last = np.arange(len(n_columns)), np.maximum(n_columns - 1, 0)
    tp = np.where(n_columns > 0, cumulative_p[rows, last], 0.0)
    predicted = np.where(n_columns > 0, cumulative_t[rows, last], 0.0)
    positive, total = cumulative_p[:, -1], cumulative_t[:, -1]
    return np.stack([tp, predicted - tp, positive - tp, total - positive - predicted + tp])


def _by_split(metrics: dict[str, Floats]) -> list[dict[str, Floats]]:
    return [{name: value[code] for name, value in metrics.items()} for code in range(len(SPLITS))]


def _along(direction: NDArray[np.int8], table: _Table) -> dict[str, Floats]:
    """Score metrics of rows whose score falls along the columns (direction −1) or rises (+1); overwrites the table."""
    back = np.flatnonzero(direction > 0)
    for part, summed in ((table.positives, table.summed_positives), (table.totals, table.summed_totals)):
        part[back] = part[back, ::-1]
        turned = summed[back, -1:] - summed[back, ::-1]
        turned += part[back]
        summed[back] = turned
    return table.ranked()


def _assemble(
    flat: dict[str, NDArray[Any]],
    offset: NDArray[np.floating[Any]],
    scale: NDArray[np.floating[Any]],
    sizes: NDArray[np.int64],
) -> NeuronScores:
    """Flat arrays to one frozen result, levels to activations."""
    low, step = offset.astype(np.float64), scale.astype(np.float64)
    metrics: dict[str, dict[str, Floats]] = {name: {} for name in SPLITS}
    best: dict[str, dict[str, Floats]] = {name: {} for name in SPLITS}
    for name, value in flat.items():
        where, *rest = name.split("/")
        if rest:
            (best if len(rest) == 2 else metrics)[where][rest[-1]] = value
    std = flat["std"] * np.abs(step)
    coef = np.divide(flat["slope"], step, out=np.zeros_like(std), where=step != 0)
    return NeuronScores(
        coef=coef,
        intercept=flat["intercept"] - coef * low,
        coef_scaled=coef * 10.0 * std,
        activation_std=std,
        converged=flat["converged"],
        best_threshold=low + step * flat["threshold"],
        best_direction=np.where(step < 0, -flat["direction"], flat["direction"]).astype(np.int8),
        mean_difference=flat["mean_difference"] * step,
        f_statistic=flat["f_statistic"],
        mutual_information=flat["mutual_information"],
        metrics=metrics,
        best_metrics=best,
        class_sizes=sizes,
    )
