"""One-neuron probes from class-by-level counts, for many neurons at once.

Rows here are (feature, neuron) pairs. Columns are the levels that occur in a row, in the order that `compact` gives them:
from the level that speaks most for the positive class to the one that speaks least. Quantities are in units of levels;
`single` turns them into activations. Nothing here counts samples or checks input.

Every sum along a row is taken row by row (no matrix products of rounded numbers), so that a row's results do not depend
on which rows it is worked on with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.metrics import ratio

Floats = NDArray[np.float64]
N_LEVELS = 256
MAX_ITERATIONS = 60
# Columns of a compact table come in multiples of this; a first fit merges as many to one.
WIDTH_STEP = 32
N_MERGED = 8
N_BINS = 16
# A Newton step that moves no score by more than this ends a fit; the error left is of the order of its square.
TOLERANCE = 1e-4
_POWERS = np.arange(N_LEVELS, dtype=np.float64)[:, None] ** np.arange(3)


@dataclass(frozen=True, eq=False)
class Moments:
    """Class means and spread of the level, each (n_rows,) float64."""

    n_positive: Floats
    n_total: Floats
    mean: Floats
    std: Floats
    mean_difference: Floats
    f_statistic: Floats


def power_sums(table: Floats) -> Floats:
    """Sums of counts times level to the powers 0, 1 and 2: (..., 256) counts to (..., 3), exact below 2**53."""
    sums: Floats = table @ _POWERS
    return sums


def moments(positive_sums: Floats, all_sums: Floats) -> Moments:
    """Means, population standard deviation, mean difference and one-way F statistic of the level.

    Parameters are the (n_rows, 3) `power_sums` of positive and of all samples. The F statistic is that of two classes
    with 1 and n − 2 degrees of freedom; 0 for a constant neuron, infinite where the classes differ and neither varies.
    """
    n_total, n_positive = all_sums[:, 0], positive_sums[:, 0]
    n_negative = n_total - n_positive
    mean = ratio(all_sums[:, 1], n_total)
    # Exact in integers up to 2**53, so a constant neuron has a spread of exactly zero.
    spread = np.maximum(n_total * all_sums[:, 2] - all_sums[:, 1] ** 2, 0.0)
    difference = ratio(positive_sums[:, 1], n_positive) - ratio(all_sums[:, 1] - positive_sums[:, 1], n_negative)
    negative_sums = all_sums - positive_sums
    within = ratio(n_positive * positive_sums[:, 2] - positive_sums[:, 1] ** 2, n_positive) + ratio(
        n_negative * negative_sums[:, 2] - negative_sums[:, 1] ** 2, n_negative
    )
    between = ratio(n_positive * n_negative, n_total) * difference**2
    with np.errstate(divide="ignore", invalid="ignore"):
        f_statistic = np.where(between > 0, between * (n_total - 2) / within, 0.0)
    return Moments(n_positive, n_total, mean, ratio(np.sqrt(spread), n_total), difference, f_statistic)


def compact(occupied: NDArray[np.bool_], width: int) -> tuple[NDArray[np.intp], Floats]:
    """Columns of the occupied levels of each neuron, from the bottom and from the top, and how far along each lies.

    Parameters
    ----------
    occupied:
        (n_neurons, 256) which levels have samples: at most `width` for each neuron.

    Returns
    -------
    columns:
        (2, n_neurons, width) levels, rising in the first and falling in the second; neurons with fewer end in an
        unoccupied one, repeated.
    levels:
        (2, n_neurons, width) rising floats: the level itself, and 255 less the level. 255 in the repeated columns.
    """
    n_neurons = len(occupied)
    cell = np.flatnonzero(occupied)
    neuron, level = cell >> 8, cell & 255
    counts = np.bincount(neuron, minlength=n_neurons)
    first = (np.cumsum(counts) - counts)[neuron]
    place = np.arange(len(cell)) - first
    columns = np.empty((2, n_neurons, width), np.intp)
    columns[:] = np.argmin(occupied, axis=1)[:, None]
    levels = np.full((2, n_neurons, width), N_LEVELS - 1.0)
    for way, at, value in ((0, place, level), (1, counts[neuron] - 1 - place, N_LEVELS - 1 - level)):
        target = neuron * width + at
        columns[way].reshape(-1)[target] = level
        levels[way].reshape(-1)[target] = value
    return columns, levels


@dataclass(frozen=True, eq=False)
class LevelFit:
    """Logistic regressions on the level: score = intercept + slope * level; each (n_rows,)."""

    intercept: Floats
    slope: Floats
    converged: NDArray[np.bool_]


def fit_logistic(
    positives: Floats,
    totals: Floats,
    cumulative_positives: Floats,
    cumulative_totals: Floats,
    levels: Floats,
    about: Moments,
    c: float,
) -> LevelFit:
    """Balanced L2-regularised logistic regression of each row's class on its level, by Newton's method.

    Minimises ½β² + c Σ w_i log(1 + exp(−y_i (α + β u_i))) with u the level over ten times its standard deviation and
    w_i = n / (2 n_class): scikit-learn's ``LogisticRegression(C=c, class_weight="balanced")``. A first fit, on every
    eight levels merged to one, gives the start; a step that leaves the directional derivative larger than before is
    halved (for a convex function that is a curvature condition), and a row is done when a Newton step moves no score by
    more than `TOLERANCE`. The slope has the sign of the mean difference (at β = 0 that is the gradient's), and is 0
    without one.
    """
    weight_positive = ratio(0.5 * about.n_total, about.n_positive)
    weight_negative = ratio(0.5 * about.n_total, about.n_total - about.n_positive)
    scale = ratio(0.1, about.std)

    def weigh(positive: Floats, total: Floats) -> tuple[Floats, Floats]:
        target = weight_positive[:, None] * positive
        mass = total - positive
        mass *= weight_negative[:, None]
        mass += target
        return target, mass

    units = levels - about.mean[:, None]
    units *= scale[:, None]
    merged = slice(N_MERGED - 1, None, N_MERGED)
    coarse_positive = np.diff(cumulative_positives[:, merged], axis=1, prepend=0.0)
    coarse_total = np.diff(cumulative_totals[:, merged], axis=1, prepend=0.0)
    middles = 0.5 * (units[:, ::N_MERGED] + units[:, merged])
    start, _ = _newton(*weigh(coarse_positive, coarse_total), middles, None, c, 0.05)
    solution, converged = _newton(*weigh(positives, totals), units, start, c, TOLERANCE)
    slope = solution[:, 1] * scale
    slope = np.where(slope * about.mean_difference > 0, slope, 0.0)
    return LevelFit(np.where(slope == 0, 0.0, solution[:, 0] - slope * about.mean), slope, converged)


def _newton(
    target: Floats, mass: Floats, units: Floats, start: Floats | None, c: float, tolerance: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """Newton's method for (α, β) of each row; all arrays (n_rows, n_columns). Solutions, and which rows converged."""
    reach = np.maximum(np.abs(units[:, 0]), np.abs(units[:, -1]))
    squares = units * units
    pull = np.einsum("ij->i", target)
    lever = np.einsum("ij,ij->i", target, units)
    n_rows = len(units)
    alpha, beta = (np.zeros(n_rows), np.zeros(n_rows)) if start is None else (start[:, 0].copy(), start[:, 1].copy())
    solution, converged = np.stack([alpha, beta], axis=1), np.zeros(n_rows, bool)
    rows = np.arange(n_rows)
    step_a, step_b, decrement, length = np.zeros(n_rows), np.zeros(n_rows), np.full(n_rows, np.inf), np.ones(n_rows)
    weighted = np.empty_like(mass)
    work = target  # no longer needed; its memory is
    for _ in range(MAX_ITERATIONS):
        trial_a, trial_b = alpha + length * step_a, beta + length * step_b
        np.multiply(-trial_b[:, None], units, out=work)
        work -= trial_a[:, None]
        with np.errstate(over="ignore"):
            np.exp(work, out=work)
        work += 1.0
        np.reciprocal(work, out=work)
        np.multiply(mass, work, out=weighted)
        # Sums of w p and of w p (1 − p), each with the powers 0, 1 and 2 of u.
        sum_p, sum_pu = np.einsum("ij->i", weighted), np.einsum("ij,ij->i", weighted, units)
        sum_puu = np.einsum("ij,ij->i", weighted, squares)
        weighted *= work
        sum_v = sum_p - np.einsum("ij->i", weighted)
        sum_vu = sum_pu - np.einsum("ij,ij->i", weighted, units)
        sum_vuu = sum_puu - np.einsum("ij,ij->i", weighted, squares)
        gradient_a, gradient_b = c * (sum_p - pull), c * (sum_pu - lever) + trial_b
        accepted = np.abs(gradient_a * step_a + gradient_b * step_b) <= 0.9 * decrement
        alpha, beta = np.where(accepted, trial_a, alpha), np.where(accepted, trial_b, beta)
        length = np.where(accepted, 1.0, 0.5 * length)
        curve, mixed, steep = c * np.maximum(sum_v, 1e-12), c * sum_vu, c * sum_vuu + 1.0
        determinant = np.maximum(curve * steep - mixed**2, 1e-300)
        newton_a = (mixed * gradient_b - steep * gradient_a) / determinant
        newton_b = (mixed * gradient_a - curve * gradient_b) / determinant
        step_a, step_b = np.where(accepted, newton_a, step_a), np.where(accepted, newton_b, step_b)
        decrement = np.where(accepted, -(gradient_a * newton_a + gradient_b * newton_b), decrement)
        done = accepted & (np.abs(newton_a) + np.abs(newton_b) * reach <= tolerance)
        if done.any():
            solution[rows[done], 0] = alpha[done] + step_a[done]
            solution[rows[done], 1] = beta[done] + step_b[done]
            converged[rows[done]] = True
            if done.all():
                return solution, converged
            keep = np.flatnonzero(~done)
            rows, alpha, beta, length = rows[keep], alpha[keep], beta[keep], length[keep]
            step_a, step_b, decrement = step_a[keep], step_b[keep], decrement[keep]
            reach, pull, lever = reach[keep], pull[keep], lever[keep]
            mass, units, squares = mass[keep], units[keep], squares[keep]
            work, weighted = work[: len(keep)], weighted[: len(keep)]
    solution[rows, 0], solution[rows, 1] = alpha, beta
    return solution, converged


@dataclass(frozen=True, eq=False)
class Cuts:
    """Best threshold of each row: positive where direction * (level − threshold) > 0, with levels as `compact` counts them.

    Thresholds are half-integers, so that no level lies on one.
    """

    threshold: Floats
    direction: NDArray[np.int8]


def best_cuts(cumulative_positives: Floats, cumulative_totals: Floats, levels: Floats, about: Moments) -> Cuts:
    """The threshold and direction of the highest Matthews correlation, midway between the levels on its two sides.

    The correlation of "among the first columns" with the positive class is (n·p − P·t)/√(P N t (n − t)), with p positives
    and t samples in those columns: one pass over the cumulative counts gives every threshold's.
    """
    lever = about.n_positive[:, None] * cumulative_totals
    lever -= about.n_total[:, None] * cumulative_positives
    below = about.n_total[:, None] - cumulative_totals
    below *= cumulative_totals
    np.maximum(below, 1.0, out=below)
    strength = lever * lever
    strength /= below
    column = strength.argmax(axis=1)
    rows = np.arange(len(column))
    informed = strength[rows, column] > 0
    direction = np.where(informed & (lever[rows, column] > 0), 1, -1).astype(np.int8)
    following = np.count_nonzero(cumulative_totals <= cumulative_totals[rows, column][:, None], axis=1)
    following = np.minimum(following, levels.shape[1] - 1)
    threshold = np.floor(0.5 * (levels[rows, column] + levels[rows, following])) + 0.5
    # A neuron without information never fires.
    return Cuts(np.where(informed, threshold, -0.5), direction)


def mutual_information(cumulative_positives: Floats, cumulative_totals: Floats, about: Moments) -> Floats:
    """Mutual information (nats) of the class and the level in at most 16 bins of nearly equal frequency.

    The plug-in estimate on 256 levels would mostly measure the number of levels: its bias is about
    (levels − 1)/(2n). Bins end at the levels where the cumulative frequency reaches q/16.
    """
    n_rows, n_columns = cumulative_totals.shape
    targets = about.n_total[:, None] * (np.arange(1, N_BINS) / N_BINS)
    lift = 2.0 * (about.n_total.max(initial=1.0) + 1.0) * np.arange(n_rows)[:, None]
    flat = (cumulative_totals + lift).ravel()
    ends = np.searchsorted(flat, (targets + lift).ravel()).reshape(n_rows, -1) - np.arange(n_rows)[:, None] * n_columns
    ends = np.concatenate([np.minimum(ends, n_columns - 1), np.full((n_rows, 1), n_columns - 1)], axis=1)
    at = np.arange(n_rows)[:, None]
    in_bin = np.diff(cumulative_totals[at, ends], axis=1, prepend=0.0)
    positive = np.diff(cumulative_positives[at, ends], axis=1, prepend=0.0)
    n, n_positive = about.n_total[:, None], about.n_positive[:, None]
    total = np.zeros(n_rows)
    for count, size in ((positive, n_positive), (in_bin - positive, n - n_positive)):
        share = ratio(count * n, in_bin * size)
        total += np.sum(ratio(count, n) * np.log(np.where(share > 0, share, 1.0)), axis=1)
    return np.maximum(total, 0.0)
