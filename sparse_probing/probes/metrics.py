"""Metrics of binary probes and of regressions, vectorised over neurons.

Everything a metric needs is here: confusion counts for the ten threshold metrics, counts along the falling score for the
three score metrics, predictions for the regression metrics. No fitting, no choice of thresholds.

Values equal scikit-learn's functions of the same purpose (``fowlkes_mallows_score`` on pairs of samples included).
Degenerate cases, where scikit-learn warns and returns NaN or a filler, are defined as follows: a ratio with a zero
denominator is 0; with one class among the labels ROC-AUC is 0 and balanced accuracy is the recall of the class that is
there; with no positive sample average precision and PR-AUC are 0. A split without any sample has NaN throughout: nothing
was measured there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError
from sparse_probing.probes.labelling import Labels, as_positive
from sparse_probing.probes.workspace import Workspace
from sparse_probing.schemas import CLASSIFICATION_METRICS, REGRESSION_METRICS

Floats = NDArray[np.float64]


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Elementwise quotient, 0 where the denominator is 0."""
    bottom = np.asarray(denominator, np.float64)
    nothing = bottom == 0
    quotient: Floats = np.asarray(numerator, np.float64) / np.where(nothing, 1.0, bottom)
    return np.where(nothing, 0.0, quotient)


def threshold_metrics(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, tn: ArrayLike) -> dict[str, Floats]:
    """The metrics of `schemas.THRESHOLD_METRICS` from confusion counts.

    Parameters
    ----------
    tp, fp, fn, tn:
        Counts of equal or broadcastable shape, e.g. (n_neurons,).

    Returns
    -------
    dict
        One float64 array of the counts' shape per metric.
    """
    tp, fp, fn, tn = (np.asarray(part, np.float64) for part in np.broadcast_arrays(tp, fp, fn, tn))
    positive, negative = tp + fn, fp + tn
    predicted, rejected = tp + fp, fn + tn
    total = positive + negative
    precision, recall, specificity = ratio(tp, predicted), ratio(tp, positive), ratio(tn, negative)
    out = {
        "mcc": mcc(tp, fp, fn, tn),
        "kappa": _kappa(positive, negative, predicted, rejected, fp + fn),
        "fowlkes_mallows": _fowlkes_mallows(tp, fp, fn, tn),
        "f1": ratio(2.0 * tp, 2.0 * tp + fp + fn),
        "f05": ratio(1.25 * tp, 1.25 * tp + fp + 0.25 * fn),
        "f2": ratio(5.0 * tp, 5.0 * tp + fp + 4.0 * fn),
        "accuracy": ratio(tp + tn, total),
        "balanced_accuracy": ratio(recall + specificity, (positive > 0).astype(float) + (negative > 0)),
        "precision": precision,
        "recall": recall,
    }
    empty = total == 0
    if np.any(empty):
        out = {name: np.where(empty, np.nan, value) for name, value in out.items()}
    return out


def mcc(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    """Matthews' correlation from confusion counts of one shape; 0 where a class or a prediction is missing."""
    return ratio(tp * tn - fp * fn, np.sqrt((tp + fn) * (fp + tn)) * np.sqrt((tp + fp) * (fn + tn)))


def _kappa(positive: Floats, negative: Floats, predicted: Floats, rejected: Floats, wrong: Floats) -> Floats:
    by_chance = positive * rejected + negative * predicted
    return np.where(by_chance == 0, 0.0, 1.0 - ratio(wrong * (positive + negative), by_chance))


def _fowlkes_mallows(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    """Geometric mean of precision and recall over *pairs* of samples (Fowlkes and Mallows, 1983)."""
    total = tp + fp + fn + tn
    together = tp * tp + fp * fp + fn * fn + tn * tn - total
    true_pairs = (tp + fn) ** 2 + (fp + tn) ** 2 - total
    predicted_pairs = (tp + fp) ** 2 + (fn + tn) ** 2 - total
    return np.sqrt(ratio(together, true_pairs)) * np.sqrt(ratio(together, predicted_pairs))


@dataclass(frozen=True, eq=False)
class Margin:
    """Number of samples at each score, both classes together: shared by the curves of all features of a neuron.

    Attributes
    ----------
    totals, summed:
        (n_rows, n_columns) float64 counts, and their cumulative sums along the columns.
    beaten:
        (n_rows, n_columns) samples that one in this column ranks above where the score falls along the columns: those in
        the columns after it, and half of those in its own.
    up_to, from_on:
        One over the samples in the columns up to this one, and from this one on; 0 where there are none.
    first, last:
        (n_rows,) the first and the last column with a sample (any, where there is none).
    """

    totals: Floats
    summed: Floats
    beaten: Floats
    up_to: Floats
    from_on: Floats
    first: NDArray[np.intp]
    last: NDArray[np.intp]

    @classmethod
    def of(cls, totals: Floats, summed: Floats, workspace: Workspace | None = None, name: str = "") -> Margin:
        """The margin of counts whose cumulative sums are at hand, in arrays of `workspace` under names with `name`."""
        workspace = workspace or Workspace()
        rest = np.subtract(summed[:, -1:], summed, out=workspace.floats(f"rest {name}", totals.shape))
        rest += totals
        parts = []
        for part, samples in (("up to", summed), ("from on", rest)):
            empty = samples == 0
            inverse = np.add(samples, empty, out=workspace.floats(f"{part} {name}", totals.shape))
            np.reciprocal(inverse, out=inverse)
            inverse -= empty
            parts.append(inverse)
        occupied = totals > 0
        rest -= np.multiply(totals, 0.5, out=workspace.floats("work", totals.shape))
        last = occupied.shape[1] - 1 - occupied[:, ::-1].argmax(axis=1)
        return cls(totals, summed, rest, parts[0], parts[1], occupied.argmax(axis=1), last)


def curve_metrics(positives: Floats, totals: Floats) -> dict[str, Floats]:
    """ROC-AUC, PR-AUC and average precision from counts along the falling score.

    Parameters
    ----------
    positives, totals:
        (n_rows, n_levels) float64: positive samples and all samples at each distinct score, highest score first. Levels
        without samples may be among them and change nothing.

    Returns
    -------
    dict
        (n_rows,) arrays ``roc_auc`` (Mann and Whitney's statistic, ties count half), ``pr_auc`` (trapezoids under the
        precision-recall curve, which starts at recall 0 with precision 1) and ``average_precision`` (steps under the
        same curve: the sum of precision times gain in recall).
    """
    return both_curves(positives, np.cumsum(positives, axis=1), Margin.of(totals, np.cumsum(totals, axis=1)))[0]


def both_curves(
    positives: Floats, summed: Floats, margin: Margin, work: Floats | None = None
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """`curve_metrics` of a score that falls along the columns, and of one that rises; `work` is overwritten.

    `summed` are the cumulative sums of `positives`.
    """
    rows = np.arange(len(positives))
    n_positive, n_total = summed[:, -1], margin.summed[:, -1]
    # A curve starts with precision 1 before its first sample, and goes on with the precision so far.
    precision = np.multiply(summed, margin.up_to, out=work)
    falling = np.einsum("ij,ij->i", positives, precision)
    falling_before = positives[rows, margin.first] + np.einsum("ij,ij->i", positives[:, 1:], precision[:, :-1])
    np.subtract(positives, summed, out=precision)
    precision += n_positive[:, None]
    precision *= margin.from_on
    rising = np.einsum("ij,ij->i", positives, precision)
    rising_before = positives[rows, margin.last] + np.einsum("ij,ij->i", positives[:, :-1], precision[:, 1:])
    # Of the samples that positives rank above, the positive ones are half the square of their number.
    pairs = np.einsum("ij,ij->i", positives, margin.beaten) - 0.5 * n_positive * n_positive
    all_pairs = n_positive * (n_total - n_positive)
    empty = n_total == 0
    found = []
    for won, steps, before in ((pairs, falling, falling_before), (all_pairs - pairs, rising, rising_before)):
        out = {
            "roc_auc": ratio(won, all_pairs),
            "pr_auc": ratio(0.5 * (steps + before), n_positive),
            "average_precision": ratio(steps, n_positive),
        }
        if np.any(empty):
            out = {name: np.where(empty, np.nan, value) for name, value in out.items()}
        found.append(out)
    return found[0], found[1]


def score_metrics(y: Labels, scores: ArrayLike) -> dict[str, float]:
    """ROC-AUC, PR-AUC and average precision of one score per sample (see `curve_metrics`).

    Parameters
    ----------
    y:
        (n_samples,) labels of two classes, none missing: booleans, 0 and 1, or -1 and +1.
    scores:
        (n_samples,) finite; equal scores are ties.
    """
    positive, values = _checked(y, scores)
    _, level = np.unique(-values, return_inverse=True)
    n_levels = int(level.max(initial=0)) + 1
    totals = np.bincount(level, minlength=n_levels).astype(np.float64)[None]
    positives = np.bincount(level[positive], minlength=n_levels).astype(np.float64)[None]
    return {name: float(value[0]) for name, value in curve_metrics(positives, totals).items()}


def classification_metrics(y: Labels, scores: ArrayLike, threshold: float = 0.0) -> dict[str, float]:
    """Every metric of `schemas.CLASSIFICATION_METRICS` of one probe: predicted positive where score > threshold.

    Parameters
    ----------
    y:
        (n_samples,) labels of two classes, none missing: booleans, 0 and 1, or -1 and +1.
    scores:
        (n_samples,) finite scores.

    Raises
    ------
    DataError
        If lengths differ or a score is not finite.
    """
    positive, values = _checked(y, scores)
    predicted = values > threshold
    tp = int(np.count_nonzero(positive & predicted))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(positive)) - tp
    at_threshold = threshold_metrics(tp, fp, fn, len(values) - tp - fp - fn)
    found = {name: float(value) for name, value in at_threshold.items()} | score_metrics(y, values)
    return {name: found[name] for name in CLASSIFICATION_METRICS}


def _checked(y: Labels, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    positive, values = as_positive(y), np.asarray(scores, np.float64)
    if positive.shape != values.shape or values.ndim != 1:
        raise DataError(
            f"Labels of shape {positive.shape} with scores of shape {values.shape}; expected one score each."
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite.",
            remedy="Look at the activations.",
        )
    return positive, values


def regression_metrics(target: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Every metric of `schemas.REGRESSION_METRICS`; errors in units of the target.

    Correlations with a constant are 0; R² and explained variance of a constant target are 1 if it is met exactly, else 0.
    ``kendall`` is tau-b. All are NaN without samples.

    Raises
    ------
    DataError
        If lengths differ or a value is not finite.
    """
    from scipy import stats

    truth, guess = np.asarray(target, np.float64), np.asarray(predicted, np.float64)
    if truth.shape != guess.shape or truth.ndim != 1:
        raise DataError(f"Targets of shape {truth.shape} with predictions of shape {guess.shape}; expected one each.")
    if not (np.isfinite(truth).all() and np.isfinite(guess).all()):
        raise DataError("A target or prediction is not finite.", remedy="Look at the labels and activations.")
    if len(truth) == 0:
        return dict.fromkeys(REGRESSION_METRICS, float("nan"))
    error = truth - guess
    square = float(np.mean(error**2))
    spread = float(np.mean((truth - truth.mean()) ** 2))
    left = float(np.mean((error - error.mean()) ** 2))
    varied = len(truth) > 1 and np.ptp(truth) > 0 and np.ptp(guess) > 0
    found = {
        "r2": _explained(square, spread, len(truth)),
        "explained_variance": _explained(left, spread, len(truth)),
        "mean_squared_error": square,
        "root_mean_squared_error": float(np.sqrt(square)),
        "mean_absolute_error": float(np.mean(np.abs(error))),
        "median_absolute_error": float(np.median(np.abs(error))),
        "max_error": float(np.max(np.abs(error))),
        "pearson": float(stats.pearsonr(truth, guess).statistic) if varied else 0.0,
        "spearman": float(stats.spearmanr(truth, guess).statistic) if varied else 0.0,
        "kendall": float(stats.kendalltau(truth, guess).statistic) if varied else 0.0,
    }
    return {name: found[name] for name in REGRESSION_METRICS}


def _explained(residual: float, spread: float, n_samples: int) -> float:
    if n_samples < 2:
        return 0.0
    if spread == 0:
        return 1.0 if residual == 0 else 0.0
    return 1.0 - residual / spread
