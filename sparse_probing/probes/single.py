"""Every neuron of a layer as a probe of its own: `score_neurons`, `score_features`, `score_counts`.

The numbers come from class-by-level counts (`counts`), so their cost hardly depends on the number of samples. This module
puts counts, fits (`levels`) and metrics together and turns levels into activations; ranking lists, intervals and
permutation nulls are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    iterate_tables,
    label_columns,
    quantise,
)
from sparse_probing.probes.levels import best_cuts, fit_logistic, moments, mutual_information
from sparse_probing.probes.metrics import _curve_metrics, threshold_metrics
from sparse_probing.probes.splits import group_split
from sparse_probing.schemas import SPLITS

Floats = NDArray[np.float64]
# Rows (feature × neuron) worked on at once: their level tables stay in the processor's cache.
_BLOCK_ROWS = 160


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

    Raises
    ------
    DataError
        If shapes, labels or split codes do not fit, an activation is not finite, or train lacks one class.
    """
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise DataError(f"y has shape {labels.shape}; expected (n_samples,).", remedy="Use score_features for several.")
    return score_features(X, labels[:, None], groups, split=split, offset=offset, scale=scale, c=c, rng=rng)[0]


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
    chunk = int(np.clip(_BLOCK_ROWS // n_features, 8, _BLOCK_ROWS))
    blocks: list[list[dict[str, Any]]] = [[] for _ in range(n_features)]
    for neurons, tables in iterate_tables(table, columns, chunk):
        width = neurons.stop - neurons.start
        positives = [_stack(counted, columns.positive) for counted in tables]
        totals = [_stack(counted, columns.labelled) for counted in tables]
        scored = _score_block(positives, totals, c)
        for feature in range(n_features):
            rows = slice(feature * width, (feature + 1) * width)
            blocks[feature].append({name: value[rows] for name, value in scored.items()})
    sizes = _class_sizes(labels, codes)
    return [_assemble(parts, low, step, sizes[feature]) for feature, parts in enumerate(blocks)]


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
    parts = []
    for start in range(0, counts.n_neurons, _BLOCK_ROWS):
        block = counts.counts[:, :, start : start + _BLOCK_ROWS].astype(np.float64)
        parts.append(_score_block(list(block[:, 1]), list(block[:, 0] + block[:, 1]), c))
    return _assemble(parts, counts.offset, counts.scale, sizes)


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


def _stack(counted: NDArray[Any], columns: tuple[int, ...]) -> Floats:
    """(n_chunk, 256, n_columns) table to (n_features * n_chunk, 256) float64 rows."""
    width = counted.shape[0]
    out = np.empty((len(columns), width, N_LEVELS))
    for feature, column in enumerate(columns):
        out[feature] = counted[:, :, column]
    return out.reshape(len(columns) * width, N_LEVELS)


def _score_block(positives: list[Floats], totals: list[Floats], c: float) -> dict[str, NDArray[Any]]:
    """All quantities of a block of rows, in units of levels, under flat names."""
    about = moments(positives[0], totals[0])
    summed = [(np.cumsum(p, axis=1), np.cumsum(t, axis=1)) for p, t in zip(positives, totals, strict=True)]
    fit = fit_logistic(positives[0], totals[0], *summed[0], about, c)
    cuts = best_cuts(*summed[0], about)
    out: dict[str, NDArray[Any]] = {
        "intercept": fit.intercept,
        "slope": fit.slope,
        "converged": fit.converged,
        "threshold": cuts.threshold,
        "direction": cuts.direction,
        "std": about.std,
        "mean_difference": about.mean_difference,
        "f_statistic": about.f_statistic,
        "mutual_information": mutual_information(*summed[0], about),
    }
    # Where the line crosses zero: positive above it for a positive slope, below it for a negative one.
    sign = np.sign(fit.slope)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.where(sign == 0, np.inf, -fit.intercept / fit.slope)
    constant = sign == 0
    upward = np.where(constant, 1.0, sign)
    for code, name in enumerate(SPLITS):
        ranked = _along(upward, constant, positives[code], totals[code], *summed[code])
        at_fit = _at(crossing, upward, *summed[code])
        for metric, value in (at_fit | ranked).items():
            out[f"{name}/{metric}"] = value
        at_best = _at(cuts.threshold, cuts.direction.astype(np.float64), *summed[code]) | dict(ranked)
        other = np.flatnonzero(cuts.direction != upward)
        if len(other):
            turned = _along(
                cuts.direction[other],
                constant[other],
                *(part[other] for part in (positives[code], totals[code], *summed[code])),
            )
            for metric, value in turned.items():
                at_best[metric] = at_best[metric].copy()
                at_best[metric][other] = value
        for metric, value in at_best.items():
            out[f"{name}/best/{metric}"] = value
    return out


def _at(threshold: Floats, direction: Floats, cumulative_p: Floats, cumulative_t: Floats) -> dict[str, Floats]:
    """Threshold metrics of "positive where direction * (level − threshold) > 0"."""
    rows = np.arange(len(threshold))
    up = direction > 0
    # Levels at or below the threshold for upward rows, strictly below it for downward ones.
    last = np.where(up, np.floor(threshold), np.ceil(threshold) - 1.0)
    index = np.clip(last, -1, N_LEVELS - 1).astype(np.intp)
    inside = index >= 0
    index = np.maximum(index, 0)
    lower_p = np.where(inside, cumulative_p[rows, index], 0.0)
    lower_t = np.where(inside, cumulative_t[rows, index], 0.0)
    n_positive, n_total = cumulative_p[:, -1], cumulative_t[:, -1]
    tp = np.where(up, n_positive - lower_p, lower_p)
    predicted = np.where(up, n_total - lower_t, lower_t)
    return threshold_metrics(tp, predicted - tp, n_positive - tp, n_total - n_positive - predicted + tp)


def _along(
    direction: NDArray[Any],
    constant: NDArray[np.bool_],
    positives: Floats,
    totals: Floats,
    cumulative_p: Floats,
    cumulative_t: Floats,
) -> dict[str, Floats]:
    """Score metrics with the level as score (upward rows) or its negative (downward); a constant score is one tie."""
    up = direction > 0
    p, t, cp, ct = (part.copy() for part in (positives, totals, cumulative_p, cumulative_t))
    # Counts along the falling score: upward rows are read from the top level down.
    p[up], t[up] = positives[up, ::-1], totals[up, ::-1]
    cp[up] = cumulative_p[up, -1:] - cumulative_p[up, ::-1] + p[up]
    ct[up] = cumulative_t[up, -1:] - cumulative_t[up, ::-1] + t[up]
    out = _curve_metrics(p, t, cp, ct)
    if constant.any():
        n_positive, n_total = cumulative_p[constant, -1:], cumulative_t[constant, -1:]
        for metric, value in _curve_metrics(n_positive, n_total, n_positive, n_total).items():
            out[metric][constant] = value
    return out


def _assemble(
    parts: list[dict[str, NDArray[Any]]],
    offset: NDArray[np.floating[Any]],
    scale: NDArray[np.floating[Any]],
    sizes: NDArray[np.int64],
) -> NeuronScores:
    """Blocks to one frozen result, levels to activations."""
    flat = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
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
