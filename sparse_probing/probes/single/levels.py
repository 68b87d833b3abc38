"""One-neuron probes from class-by-level counts, for many neurons at once.

Rows are neurons, columns the 256 levels in ascending order. Quantities are in units of levels; `scoring` converts them to
activations. Nothing here counts samples or checks input.

Every sum along a row is taken row by row (no matrix products of rounded numbers), so that a row's results do not depend
on the other rows of the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.metrics import ratio
from sparse_probing.probes.workspace import Workspace

Floats = NDArray[np.float64]
N_LEVELS = 256
MAX_ITERATIONS = 60
# Levels merged to one in a first fit.
N_MERGED = 8
N_BINS = 16
# A Newton step that moves no score by more than this ends a fit; the error left is of the order of its square.
TOLERANCE = 1e-4
FIRST_TOLERANCE = 0.03
_POWERS = np.arange(N_LEVELS, dtype=np.float64) ** np.arange(3)[:, None]


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
    # Not a matrix product: its threads would wait for those that score chunks of neurons.
    return np.stack([np.einsum("...l,l->...", table, power) for power in _POWERS], axis=-1)


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


@dataclass(frozen=True, eq=False)
class SharedLevels:
    """What one-neuron probes of several features with the same labelled training rows have in common.

    Attributes
    ----------
    totals, summed:
        (n_rows, 256) training rows at each level, and up to it.
    units, squares:
        (n_rows, 256) level less its mean, over ten standard deviations, and its square.
    merged_totals, merged_units, merged_squares:
        The same with every eight levels merged to one, at the mean of its training rows.
    following:
        (n_rows, 256) the next level with training rows; the last one, where there is none.
    spread:
        (n_rows, 256) 1 / (t (n − t)) with t = summed, and at most 1.
    bin_ends, in_bin:
        (n_rows, 16) last level of each bin of nearly equal frequency, and training rows in it.
    """

    totals: Floats
    summed: Floats
    units: Floats
    squares: Floats
    merged_totals: Floats
    merged_units: Floats
    merged_squares: Floats
    following: NDArray[np.int16]
    spread: Floats
    bin_ends: NDArray[np.intp]
    in_bin: Floats

    @classmethod
    def of(cls, totals: Floats, summed: Floats, level_moments: Moments, workspace: Workspace) -> SharedLevels:
        """What features share whose `level_moments` agree in `n_total`, `mean` and `std`."""
        units = np.subtract(_POWERS[1], level_moments.mean[:, None], out=workspace.floats("units", totals.shape))
        units *= ratio(0.1, level_moments.std)[:, None]
        merged_totals = _merge(summed)
        middles = 0.5 * (units[:, ::N_MERGED] + units[:, N_MERGED - 1 :: N_MERGED])
        within = np.multiply(totals, units, out=workspace.floats("work", totals.shape)).reshape(
            len(units), -1, N_MERGED
        )
        merged_units = np.divide(np.einsum("ijk->ij", within), merged_totals, out=middles, where=merged_totals > 0)
        last = np.int16(N_LEVELS - 1)
        own = np.where(totals > 0, np.arange(N_LEVELS, dtype=np.int16), last)
        following = np.full(own.shape, last, np.int16)
        following[:, :-1] = np.minimum.accumulate(own[:, :0:-1], axis=1)[:, ::-1]
        spread = np.subtract(level_moments.n_total[:, None], summed, out=workspace.floats("spread", totals.shape))
        spread *= summed
        np.maximum(spread, 1.0, out=spread)
        np.reciprocal(spread, out=spread)
        ends, in_bin = frequency_bins(summed)
        return cls(
            totals=totals,
            summed=summed,
            units=units,
            squares=np.multiply(units, units, out=workspace.floats("squares", totals.shape)),
            merged_totals=merged_totals,
            merged_units=merged_units,
            merged_squares=merged_units * merged_units,
            following=following,
            spread=spread,
            bin_ends=ends,
            in_bin=in_bin,
        )


def _merge(summed: Floats) -> Floats:
    """Counts in every eight levels together, from cumulative sums."""
    return np.diff(summed[:, N_MERGED - 1 :: N_MERGED], axis=1, prepend=0.0)


@dataclass(frozen=True, eq=False)
class LevelFit:
    """Logistic regressions on the level: score = intercept + slope * level; each (n_rows,)."""

    intercept: Floats
    slope: Floats
    converged: NDArray[np.bool_]


def fit_logistic(
    positives: Floats, summed: Floats, shared: SharedLevels, level_moments: Moments, c: float, workspace: Workspace
) -> LevelFit:
    """Balanced L2-regularised logistic regression of each row's class on its level, by Newton's method.

    Minimises ½β² + c Σ w_i log(1 + exp(−y_i (α + β u_i))) with u the level over ten times its standard deviation and
    w_i = n / (2 n_class): scikit-learn's ``LogisticRegression(C=c, class_weight="balanced")``. A first fit, with every
    eight levels merged to one, gives the start; a step that leaves the directional derivative larger than before is
    halved (for a convex function that is a curvature condition), and a row is done when a Newton step moves no score by
    more than `TOLERANCE`. The slope has the sign of the mean difference (at β = 0 that is the gradient's), and is 0
    without one.

    Parameters
    ----------
    positives, summed:
        (n_rows, 256) positive training rows at each level, and up to it.
    """
    weight_positive = ratio(0.5 * level_moments.n_total, level_moments.n_positive)
    weight_negative = ratio(0.5 * level_moments.n_total, level_moments.n_total - level_moments.n_positive)

    def mass(positive: Floats, total: Floats) -> Floats:
        weighed, negative = workspace.floats("mass", positive.shape), workspace.floats("work", positive.shape)
        np.multiply((weight_positive - weight_negative)[:, None], positive, out=weighed)
        weighed += np.multiply(weight_negative[:, None], total, out=negative)
        return weighed

    # What the loss has in it of the labels is linear in the score: exact in the first fit as well.
    pull = weight_positive * level_moments.n_positive
    lever = weight_positive * np.einsum("ij,ij->i", positives, shared.units)
    merged = mass(_merge(summed), shared.merged_totals)
    start, _ = _newton(
        pull, lever, merged, shared.merged_units, shared.merged_squares, None, c, FIRST_TOLERANCE, workspace
    )
    solution, converged = _newton(
        pull, lever, mass(positives, shared.totals), shared.units, shared.squares, start, c, TOLERANCE, workspace
    )
    slope = solution[:, 1] * ratio(0.1, level_moments.std)
    slope = np.where(slope * level_moments.mean_difference > 0, slope, 0.0)
    return LevelFit(np.where(slope == 0, 0.0, solution[:, 0] - slope * level_moments.mean), slope, converged)


def _newton(
    pull: Floats,
    lever: Floats,
    mass: Floats,
    units: Floats,
    squares: Floats,
    start: Floats | None,
    c: float,
    tolerance: float,
    workspace: Workspace,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Newton's method for (α, β) of each row: solutions, and which rows converged.

    `pull` and `lever` (n_rows,) are the weights of the positive rows and those times u, summed; `mass` (n_rows, n_columns)
    are the weights of all rows at each u, `units`.
    """
    reach = np.maximum(np.abs(units[:, 0]), np.abs(units[:, -1]))
    n_rows = len(units)
    alpha, beta = (np.zeros(n_rows), np.zeros(n_rows)) if start is None else (start[:, 0].copy(), start[:, 1].copy())
    solution, converged = np.stack([alpha, beta], axis=1), np.zeros(n_rows, bool)
    rows = np.arange(n_rows)
    step_a, step_b, decrement, length = np.zeros(n_rows), np.zeros(n_rows), np.full(n_rows, np.inf), np.ones(n_rows)
    weighted, work = workspace.floats("weighted", mass.shape), workspace.floats("work", mass.shape)
    turn = 0
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
            turn = 1 - turn
            mass, units, squares = (
                np.take(
                    part, keep, axis=0, out=workspace.floats(f"{name} {turn}", (len(keep), part.shape[1])), mode="clip"
                )
                for name, part in (("mass", mass), ("units", units), ("squares", squares))
            )
            work, weighted = work[: len(keep)], weighted[: len(keep)]
    solution[rows, 0], solution[rows, 1] = alpha, beta
    return solution, converged


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Best threshold of each row: positive where direction * (level − threshold) > 0.

    Thresholds are half-integers, so that no level lies on one.
    """

    threshold: Floats
    direction: NDArray[np.int8]


def best_thresholds(summed: Floats, shared: SharedLevels, level_moments: Moments, workspace: Workspace) -> Thresholds:
    """The threshold and direction of the highest Matthews correlation, midway between the levels on its two sides.

    The correlation of "level up to this one" with the positive class is (n·p − P·t)/√(P N t (n − t)), with p
    positives and t samples there: one pass over the cumulative counts `summed` gives every threshold's.
    """
    lever, strength = workspace.floats("work", summed.shape), workspace.floats("weighted", summed.shape)
    np.multiply(level_moments.n_positive[:, None], shared.summed, out=lever)
    lever -= np.multiply(level_moments.n_total[:, None], summed, out=strength)
    np.multiply(lever, lever, out=strength)
    strength *= shared.spread
    column = strength.argmax(axis=1)
    rows = np.arange(len(column))
    informed = strength[rows, column] > 0
    rising = np.where(informed, lever[rows, column] > 0, level_moments.mean_difference > 0)
    threshold = np.floor(0.5 * (column + shared.following[rows, column])) + 0.5
    # A neuron without information never fires.
    never = np.where(rising, N_LEVELS - 0.5, -0.5)
    return Thresholds(np.where(informed, threshold, never), np.where(rising, 1, -1).astype(np.int8))


def frequency_bins(summed: Floats) -> tuple[NDArray[np.intp], Floats]:
    """At most 16 bins of nearly equal frequency: they end where the cumulative counts reach q/16 of all.

    Returns
    -------
    (n_rows, 16) last column of each bin, and samples in it (0 in bins that are empty).
    """
    n_rows, n_columns = summed.shape
    targets = summed[:, -1:] * (np.arange(1, N_BINS) / N_BINS)
    lift = 2.0 * (summed[:, -1].max(initial=1.0) + 1.0) * np.arange(n_rows)[:, None]
    flat = (summed + lift).ravel()
    ends = np.searchsorted(flat, (targets + lift).ravel()).reshape(n_rows, -1) - np.arange(n_rows)[:, None] * n_columns
    ends = np.concatenate([np.minimum(ends, n_columns - 1), np.full((n_rows, 1), n_columns - 1)], axis=1)
    return ends, np.diff(np.take_along_axis(summed, ends, axis=1), axis=1, prepend=0.0)


def mutual_information(summed: Floats, bin_ends: NDArray[np.intp], in_bin: Floats, level_moments: Moments) -> Floats:
    """Mutual information (nats) of the class and the level in bins of nearly equal frequency.

    The plug-in estimate on 256 levels would mostly measure the number of levels: its bias is about
    (levels − 1)/(2n).

    Parameters
    ----------
    summed:
        (n_rows, n_columns) cumulative counts of positive samples.
    bin_ends, in_bin:
        From `frequency_bins` of all samples.
    """
    positive = np.diff(np.take_along_axis(summed, bin_ends, axis=1), axis=1, prepend=0.0)
    n, n_positive = level_moments.n_total[:, None], level_moments.n_positive[:, None]
    total = np.zeros(len(summed))
    for count, size in ((positive, n_positive), (in_bin - positive, n - n_positive)):
        share = ratio(count * n, in_bin * size)
        total += np.sum(ratio(count, n) * np.log(np.where(share > 0, share, 1.0)), axis=1)
    return np.maximum(total, 0.0)
