"""Every neuron of a layer as a probe of its own: `score_neurons`, `score_features`, `score_counts`.

The numbers come from class-by-level counts (`counts`), so their cost hardly depends on the number of samples. This module
combines counts, fits (`levels`) and metrics, and converts levels to activations; ranking lists, intervals and
permutation nulls are elsewhere.

Long because the public functions state their parameters in full, with examples that run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError
from sparse_probing.probes.data import check_classes, check_labels, check_quantisation, default_split
from sparse_probing.probes.labelling import Labels, SignedLabels, as_signs, label_classes
from sparse_probing.probes.metrics import Margin, both_curves, curve_metrics, threshold_metrics
from sparse_probing.probes.single.counts import (
    N_LEVELS,
    LevelCounts,
    count_tables,
    label_columns,
    quantise,
)
from sparse_probing.probes.single.levels import (
    Moments,
    SharedLevels,
    best_thresholds,
    fit_logistic,
    moments,
    mutual_information,
    power_sums,
)
from sparse_probing.probes.single.neuron_scores import FeatureScores, NeuronScores
from sparse_probing.probes.workspace import Workspace, borrowed_workspace
from sparse_probing.schemas import SCORE_METRICS, SPLITS

Floats = NDArray[np.float64]
# Neurons worked on at once.
_BLOCK_NEURONS = 1024


def score_neurons(
    X: ArrayLike,
    y: Labels,
    groups: ArrayLike | None = None,
    *,
    labelled: ArrayLike | None = None,
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
        (n_samples,) of two classes: booleans, 0 and 1, or -1 and +1. NaN in a float y is a row without a label. (An array
        of -1, 0 and +1 is refused: its 0 may mean either. `labelling.SignedLabels` marks one whose 0 is no label.)
    labelled:
        (n_samples,) bool: the rows whose y is a label; all of them if absent.
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
    offset, scale:
        (n_neurons,) of uint8 levels, in units of activation; only with those.

    Returns
    -------
    NeuronScores
        Coefficients, thresholds and metrics of every neuron, each an array (n_neurons,).

    Raises
    ------
    DataError
        If shapes, labels or split codes do not fit, an activation is not finite, or train lacks one class.

    Examples
    --------
    Neuron 3 of eight rises with the feature:

    >>> import numpy as np
    >>> from sparse_probing import score_neurons
    >>> y = np.arange(400) % 2 == 0
    >>> X = np.random.default_rng(0).standard_normal((400, 8))
    >>> X[:, 3] += 4 * y
    >>> scores = score_neurons(X, y)
    >>> int(scores.best_first()[0]), int(scores.direction[3])
    (3, 1)
    >>> bool(scores.metrics["test"]["mcc"][3] > 0.8)
    True
    >>> scores.table().column_names[:3]
    ['neuron', 'coef', 'intercept']
    """
    signs = as_signs(y, labelled)
    if signs.ndim != 1:
        raise DataError(f"y has shape {signs.shape}; expected (n_samples,).", remedy="Use score_features for several.")
    scored = score_features(
        X,
        SignedLabels(signs[:, None]),
        groups,
        split=split,
        offset=offset,
        scale=scale,
        c=c,
        rng=rng,
        n_threads=n_threads,
    )[0]
    return replace(scored, classes=label_classes(y))


def score_features(
    X: ArrayLike,
    Y: Labels,
    groups: ArrayLike | None = None,
    *,
    labelled: ArrayLike | None = None,
    split: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    c: float = 1.0,
    rng: np.random.Generator | int = 0,
    n_threads: int | None = None,
    features: Sequence[str] | None = None,
) -> FeatureScores:
    """Score every neuron for several features that share rows: one counting pass serves all of them.

    Parameters
    ----------
    Y:
        (n_samples, n_features), coded as y in `score_neurons`, all columns alike.
    labelled:
        (n_samples, n_features) or (n_samples,) bool. Other parameters as in `score_neurons`.
    features:
        (n_features,) names of the columns of Y; their numbers if absent.

    Returns
    -------
    FeatureScores
        A list with the `NeuronScores` of each feature, in the order of the columns of Y.

    Raises
    ------
    DataError
        As in `score_neurons`, the feature named by its column; or if the number of names is not that of the columns.

    Examples
    --------
    >>> import numpy as np
    >>> from sparse_probing import score_features
    >>> Y = np.stack([np.arange(400) % 2 == 0, np.arange(400) % 3 == 0], axis=1)
    >>> X = np.random.default_rng(0).standard_normal((400, 8))
    >>> X[:, [2, 5]] += 4 * Y
    >>> scores = score_features(X, Y, features=["even", "threes"])
    >>> [int(one.best_first()[0]) for one in scores]
    [2, 5]
    >>> scores.table().num_rows
    16
    """
    table = np.asarray(X)
    if table.ndim != 2 or table.shape[1] == 0:
        raise DataError(f"X has shape {table.shape}; expected (n_samples, n_neurons) with at least one neuron.")
    signs = as_signs(Y, labelled)
    if split is None:
        split = default_split(signs, groups, table.shape[0], rng)
    labels, codes = check_labels(SignedLabels(signs), split, table.shape[0])
    check_classes(labels, codes)
    of_levels = table.dtype == np.uint8
    if of_levels:
        low, step = check_quantisation(offset, scale, table.shape[1])
    elif np.issubdtype(table.dtype, np.floating) or np.issubdtype(table.dtype, np.integer):
        if offset is not None or scale is not None:
            raise DataError(f"offset and scale given with X of type {table.dtype}; they belong to uint8 levels.")
        table, low, step = quantise(table, (codes == 0) & (labels != 0).any(axis=1))
    else:
        raise DataError(f"X has type {table.dtype}; expected uint8 levels or floats.")

    n_features = labels.shape[1]
    names = [str(column) for column in range(n_features)] if features is None else list(features)
    if len(names) != n_features:
        raise DataError(f"{len(names)} names for {n_features} features.", remedy="Name every column of Y, or none.")
    columns = label_columns(labels, codes)
    workers = n_threads or min(4, os.cpu_count() or 1)
    # As many chunks for each thread, none larger than a block.
    n_chunks = -(-table.shape[1] // _BLOCK_NEURONS)
    n_chunks = -(-n_chunks // workers) * workers if n_chunks > 1 else 1
    chunk = max(1, -(-table.shape[1] // n_chunks))
    chunks = [slice(start, min(start + chunk, table.shape[1])) for start in range(0, table.shape[1], chunk)]

    def score(neurons: slice) -> list[dict[str, NDArray[Any]]]:
        with borrowed_workspace() as workspace:
            counted = count_tables(table, columns, neurons, workspace)
            return _score_chunk(counted, columns.positive, columns.labelled, workspace, c)

    sizes, classes = _class_sizes(labels, codes), label_classes(Y)
    with ThreadPoolExecutor(workers) if workers > 1 and len(chunks) > 1 else nullcontext() as pool:
        each: Any = pool.map if pool is not None else map
        scored_chunks = list(each(score, chunks))

        def assemble(feature: int) -> NeuronScores:
            joined = _joined([scored[feature] for scored in scored_chunks])
            return replace(_assemble(joined, low, step, sizes[feature], of_levels), classes=classes)

        return FeatureScores(each(assemble, range(n_features)), names)


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
    scored = []
    with borrowed_workspace() as workspace:
        for start in range(0, counts.n_neurons, _BLOCK_NEURONS):
            negative, positive = np.moveaxis(counts.counts[:, :, start : start + _BLOCK_NEURONS], 1, 0)
            tables = list(np.stack([negative + positive, positive], axis=1))
            scored.append(_score_chunk(tables, (1,), (0,), workspace, c)[0])
    return _assemble(_joined(scored), counts.offset, counts.scale, sizes)


def _joined(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Flat arrays of consecutive chunks of neurons as those of all."""
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def _class_sizes(labels: NDArray[np.int8], split: NDArray[np.int8]) -> NDArray[np.int64]:
    """(n_features, 3, 2) labelled samples by split and class."""
    per_split = [
        [(labels[split == code] < 0).sum(axis=0), (labels[split == code] > 0).sum(axis=0)] for code in range(3)
    ]
    return np.asarray(np.moveaxis(np.array(per_split), -1, 0), np.int64)


def _summed(name: str, counted: NDArray[Any], workspace: Workspace) -> tuple[Floats, Floats]:
    """Counts as floats, and their cumulative sums along the levels, in arrays of `workspace` of that name."""
    plain, summed = workspace.floats(name, counted.shape), workspace.floats(f"summed {name}", counted.shape)
    np.copyto(plain, counted)
    # In integers, which is several times faster than in floats.
    np.copyto(summed, np.cumsum(counted, axis=1, out=workspace.array("whole", counted.shape, counted.dtype)))
    return plain, summed


def _score_chunk(
    counted: list[NDArray[Any]], positive: tuple[int, ...], labelled: tuple[int, ...], workspace: Workspace, c: float
) -> list[dict[str, NDArray[Any]]]:
    """Each feature's quantities for a chunk of neurons, in units of levels, under flat names; neurons come last.

    Parameters
    ----------
    counted:
        (n_columns, n_neurons, 256) whole numbers for each split (see `counts.count_tables`).
    positive, labelled:
        Each feature's columns.
    """
    exact, sums = workspace.floats("work", counted[0].shape[1:]), []
    for table in counted[0]:
        np.copyto(exact, table)
        sums.append(power_sums(exact))
    level_moments = [moments(sums[p], sums[t]) for p, t in zip(positive, labelled, strict=True)]
    out: list[dict[str, NDArray[Any]]] = [{} for _ in positive]
    for column in sorted(set(labelled)):
        alike = [feature for feature, one in enumerate(labelled) if one == column]
        # Every neuron has as many labelled rows as the first; a split without any has nothing to sum or to score.
        used = [bool(table[column, :1].any()) for table in counted]
        margins = [
            Margin.of(*_summed(f"totals of {name}", table[column], workspace), workspace, name) if some else None
            for name, table, some in zip(SPLITS, counted, used, strict=True)
        ]
        train = margins[0]
        if train is None:
            raise DataError("No labelled training row; a probe needs some.", remedy="Split otherwise.")
        shared = SharedLevels.of(train.totals, train.summed, level_moments[alike[0]], workspace)
        for feature in alike:
            parts = [
                None if margin is None else _Part(*_summed(name, table[positive[feature]], workspace), margin)
                for name, table, margin in zip(SPLITS, counted, margins, strict=True)
            ]
            out[feature] = _score_feature(parts, shared, level_moments[feature], c, workspace)
    return out


@dataclass(frozen=True, eq=False)
class _Part:
    """One feature's counts in one split: positives at each level, those up to it, and what lies there in all."""

    positives: Floats
    summed: Floats
    margin: Margin


def _score_feature(
    parts: list[_Part | None], shared: SharedLevels, level_moments: Moments, c: float, workspace: Workspace
) -> dict[str, NDArray[Any]]:
    """Fits, thresholds and metrics of one feature; `parts` by split, None without labelled rows."""
    assert parts[0] is not None  # train, from which `shared` was computed
    positives, summed = parts[0].positives, parts[0].summed
    fit = fit_logistic(positives, summed, shared, level_moments, c, workspace)
    thresholds = best_thresholds(summed, shared, level_moments, workspace)
    out: dict[str, NDArray[Any]] = {
        "std": level_moments.std,
        "mean_difference": level_moments.mean_difference,
        "f_statistic": level_moments.f_statistic,
        "intercept": fit.intercept,
        "slope": fit.slope,
        "converged": fit.converged,
        "threshold": thresholds.threshold,
        "direction": thresholds.direction,
        "mutual_information": mutual_information(summed, shared.bin_ends, shared.in_bin, level_moments),
    }
    # Without a slope the score is 0 everywhere: never positive, one tie.
    flat, rising, best_rising = fit.slope == 0, fit.slope > 0, thresholds.direction > 0
    crossing = np.where(flat, -1.0, -fit.intercept / np.where(flat, 1.0, fit.slope))
    # A level at the crossing itself has score 0, which is not positive.
    whole = np.where(rising, np.floor(crossing) + 1, np.ceil(crossing))
    out["confusion"] = _confusion(whole, rising, parts)
    out["best_confusion"] = _confusion(np.ceil(thresholds.threshold), best_rising, parts)
    tied, work = np.flatnonzero(flat), workspace.floats("work", shared.units.shape)
    unknown = np.full(len(flat), np.nan)
    for name, part in zip(SPLITS, parts, strict=True):
        if part is None:
            out |= {f"{name}{which}/{metric}": unknown for which in ("", "/best") for metric in SCORE_METRICS}
            continue
        down, up = both_curves(part.positives, part.summed, part.margin, work)
        one_tie = curve_metrics(part.summed[tied, -1:], part.margin.summed[tied, -1:]) if len(tied) else {}
        for metric in SCORE_METRICS:
            ranked = np.where(rising, up[metric], down[metric])
            if len(tied):
                ranked[tied] = one_tie[metric]
            out[f"{name}/{metric}"] = ranked
            out[f"{name}/best/{metric}"] = np.where(best_rising, up[metric], down[metric])
    return out


def _confusion(threshold: Floats, rising: NDArray[np.bool_], splits: list[_Part | None]) -> Floats:
    """(4, n_splits, n_rows) true and false positives, false and true negatives of "level on the threshold's one side".

    That is at or above the threshold, a whole number, where `rising`, else below it. Zeros without labelled rows.
    """
    rows, n_below = np.arange(len(threshold)), np.clip(threshold, 0, N_LEVELS).astype(np.intp)
    last, some = np.maximum(n_below - 1, 0), n_below > 0
    found = np.zeros((4, len(splits), len(threshold)))
    for code, part in enumerate(splits):
        if part is None:
            continue
        below_positive = np.where(some, part.summed[rows, last], 0.0)
        below = np.where(some, part.margin.summed[rows, last], 0.0)
        positive, total = part.summed[:, -1], part.margin.summed[:, -1]
        tp = np.where(rising, positive - below_positive, below_positive)
        predicted = np.where(rising, total - below, below)
        found[:, code] = tp, predicted - tp, positive - tp, total - positive - predicted + tp
    return found


def _assemble(
    flat: dict[str, NDArray[Any]],
    offset: NDArray[np.floating[Any]],
    scale: NDArray[np.floating[Any]],
    sizes: NDArray[np.int64],
    of_levels: bool = True,
) -> NeuronScores:
    """Flat arrays to one frozen result, levels to activations. `of_levels`: the levels are the caller's own."""
    low, step = offset.astype(np.float64), scale.astype(np.float64)
    # All neurons at once: by chunks, the many small operations would take longer than the numbers.
    at_fit, at_best = threshold_metrics(*flat["confusion"]), threshold_metrics(*flat["best_confusion"])
    metrics: dict[str, dict[str, Floats]] = {}
    best: dict[str, dict[str, Floats]] = {}
    for code, name in enumerate(SPLITS):
        metrics[name] = {metric: value[code] for metric, value in at_fit.items()}
        best[name] = {metric: value[code] for metric, value in at_best.items()}
        for metric in SCORE_METRICS:
            metrics[name][metric], best[name][metric] = flat[f"{name}/{metric}"], flat[f"{name}/best/{metric}"]
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
        offset=low if of_levels else low[:0],
        scale=step if of_levels else step[:0],
    )
