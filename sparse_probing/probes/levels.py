"""One-neuron probes from class-by-level counts, for many neurons at once.

Rows here are (feature, neuron) pairs; columns are the 256 levels. All quantities are in units of levels and independent of
how many samples were counted; `single` turns them into activations. Nothing here counts samples or checks input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.metrics import ratio

Floats = NDArray[np.float64]
N_LEVELS = 256
MAX_ITERATIONS = 60
N_COARSE = 32
N_BINS = 16
_POWERS = np.stack([np.ones(N_LEVELS), np.arange(N_LEVELS), np.arange(N_LEVELS) ** 2.0], axis=1)


@dataclass(frozen=True, eq=False)
class Moments:
    """Class means and spread of the level, each (n_rows,) float64."""

    n_positive: Floats
    n_total: Floats
    mean: Floats
    std: Floats
    mean_difference: Floats
    f_statistic: Floats


def moments(positives: Floats, totals: Floats) -> Moments:
    """Means, population standard deviation, mean difference and one-way F statistic of the level.

    The F statistic is that of two classes with 1 and n − 2 degrees of freedom; 0 for a constant neuron, infinite where
    the classes differ and neither varies.
    """
    all_sums, positive_sums = totals @ _POWERS, positives @ _POWERS
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
class LevelFit:
    """Logistic regressions on the level: score = intercept + slope * level; each (n_rows,)."""

    intercept: Floats
    slope: Floats
    converged: NDArray[np.bool_]


def fit_logistic(
    positives: Floats, totals: Floats, cumulative_positives: Floats, cumulative_totals: Floats, about: Moments, c: float
) -> LevelFit:
    """Balanced L2-regularised logistic regression of each row's class on its level, by Newton's method.

    Minimises ½β² + c Σ w_i log(1 + exp(−y_i (α + β u_i))) with u the level over ten times its standard deviation and
    w_i = n / (2 n_class): scikit-learn's ``LogisticRegression(C=c, class_weight="balanced")``. A first fit on 32
    merged levels gives the start; a step that leaves the directional derivative larger than before is halved (for a
    convex function that is a curvature condition), and a row is done when a Newton step moves no score by more than
    1e-5, which leaves an error of the order of its square.
    """
    n_negative = about.n_total - about.n_positive
    weight_positive = ratio(0.5 * about.n_total, about.n_positive)
    weight_negative = ratio(0.5 * about.n_total, n_negative)
    scale = ratio(0.1, about.std)
    start = np.zeros((len(scale), 2))

    def weigh(positive: Floats, total: Floats) -> tuple[Floats, Floats]:
        target = weight_positive[:, None] * positive
        mass = weight_negative[:, None] * (total - positive)
        mass += target
        return target, mass

    width = N_LEVELS // N_COARSE
    coarse_positive = np.diff(cumulative_positives[:, width - 1 :: width], axis=1, prepend=0.0)
    coarse_total = np.diff(cumulative_totals[:, width - 1 :: width], axis=1, prepend=0.0)
    middles = np.arange(N_COARSE, dtype=np.float64) * width + 0.5 * (width - 1)
    target, mass = weigh(coarse_positive, coarse_total)
    start, _ = _newton(target, mass, middles, about.mean, scale, start, c, tolerance=1e-2)
    target, mass = weigh(positives, totals)
    solution, converged = _newton(
        target, mass, np.arange(N_LEVELS, dtype=np.float64), about.mean, scale, start, c, 1e-5
    )
    slope = solution[:, 1] * scale
    return LevelFit(solution[:, 0] - slope * about.mean, slope, converged)


def _newton(
    target: Floats, mass: Floats, levels: Floats, mean: Floats, scale: Floats, start: Floats, c: float, tolerance: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """Newton's method for (α, β) of each row; u = (level − mean)·scale. Returns the solutions and which converged."""
    centre = 0.5 * (levels[0] + levels[-1])
    shifted = levels - centre
    powers = np.stack([np.ones_like(shifted), shifted, shifted**2], axis=1)
    offset = mean - centre
    reach = np.maximum(offset - shifted[0], shifted[-1] - offset) * scale
    sums = target @ powers[:, :2]
    linear = np.stack([sums[:, 0], (sums[:, 1] - offset * sums[:, 0]) * scale], axis=1)
    solution, converged = start.copy(), np.zeros(len(scale), bool)
    rows = np.arange(len(scale))
    at, step, decrement = start.copy(), np.zeros_like(start), np.full(len(scale), np.inf)
    length = np.ones(len(scale))
    work = np.empty_like(mass)
    for _ in range(MAX_ITERATIONS):
        trial = at + length[:, None] * step
        slope = trial[:, 1] * scale
        np.multiply(-slope[:, None], shifted, out=work)
        work += (slope * offset - trial[:, 0])[:, None]
        np.minimum(work, 700.0, out=work)
        np.exp(work, out=work)
        work += 1.0
        np.reciprocal(work, out=work)
        weighted = mass * work
        first = weighted @ powers
        np.multiply(weighted, work, out=work)
        second = first - work @ powers
        gradient = np.stack([first[:, 0], (first[:, 1] - offset * first[:, 0]) * scale], axis=1) - linear
        gradient *= c
        gradient[:, 1] += trial[:, 1]
        accepted = np.abs(np.einsum("ij,ij->i", gradient, step)) <= 0.9 * decrement
        at = np.where(accepted[:, None], trial, at)
        length = np.where(accepted, 1.0, 0.5 * length)
        curve = c * np.maximum(second[:, 0], 1e-12)
        mixed = c * (second[:, 1] - offset * second[:, 0]) * scale
        steep = c * (second[:, 2] - 2.0 * offset * second[:, 1] + offset**2 * second[:, 0]) * scale**2 + 1.0
        determinant = np.maximum(curve * steep - mixed**2, 1e-300)
        newton = np.stack(
            [mixed * gradient[:, 1] - steep * gradient[:, 0], mixed * gradient[:, 0] - curve * gradient[:, 1]], axis=1
        )
        newton /= determinant[:, None]
        step = np.where(accepted[:, None], newton, step)
        decrement = np.where(accepted, -np.einsum("ij,ij->i", gradient, newton), decrement)
        done = accepted & (np.abs(newton[:, 0]) + np.abs(newton[:, 1]) * reach <= tolerance)
        if done.any():
            solution[rows[done]] = at[done] + step[done]
            converged[rows[done]] = True
            if done.all():
                return solution, converged
            keep = ~done
            # Dropping rows costs a copy; worth it once a good part is done.
            rows, at, step, decrement, length = rows[keep], at[keep], step[keep], decrement[keep], length[keep]
            mass, scale, offset, reach, linear = mass[keep], scale[keep], offset[keep], reach[keep], linear[keep]
            work = work[: len(rows)]
    solution[rows] = at
    return solution, converged


@dataclass(frozen=True, eq=False)
class Cuts:
    """Best threshold of each row: positive where direction * (level − threshold) > 0. Thresholds are half-integers."""

    threshold: Floats
    direction: NDArray[np.int8]


def best_cuts(cumulative_positives: Floats, cumulative_totals: Floats, about: Moments) -> Cuts:
    """The threshold and direction of the highest Matthews correlation, midway between the levels on its two sides.

    The correlation of "level ≤ l" with the negative class is (P·t − n·p)/√(P N t (n − t)), with p positives and t
    samples up to l: one pass over the cumulative counts gives every threshold's.
    """
    lever = about.n_positive[:, None] * cumulative_totals
    lever -= about.n_total[:, None] * cumulative_positives
    below = about.n_total[:, None] - cumulative_totals
    below *= cumulative_totals
    np.maximum(below, 1.0, out=below)
    strength = lever * lever
    strength /= below
    level = strength.argmax(axis=1)
    rows = np.arange(len(level))
    level = np.where(strength[rows, level] > 0, level, N_LEVELS - 1)
    direction = np.where(lever[rows, level] < 0, -1, 1).astype(np.int8)
    following = np.count_nonzero(cumulative_totals <= cumulative_totals[rows, level][:, None], axis=1)
    threshold = (level + np.minimum(following, N_LEVELS)) // 2 + 0.5
    threshold = np.where(following >= N_LEVELS, N_LEVELS - 0.5, threshold)
    return Cuts(threshold, direction)


def mutual_information(cumulative_positives: Floats, cumulative_totals: Floats, about: Moments) -> Floats:
    """Mutual information (nats) of the class and the level in at most 16 bins of nearly equal frequency.

    The plug-in estimate on 256 levels would mostly measure the number of levels: its bias is about
    (levels − 1)/(2n). Bins end at the levels where the cumulative frequency reaches q/16.
    """
    n_rows = len(about.n_total)
    targets = about.n_total[:, None] * (np.arange(1, N_BINS) / N_BINS)
    lift = 2.0 * (about.n_total.max(initial=1.0) + 1.0) * np.arange(n_rows)[:, None]
    flat = (cumulative_totals + lift).ravel()
    ends = np.searchsorted(flat, (targets + lift).ravel()).reshape(n_rows, -1) - np.arange(n_rows)[:, None] * N_LEVELS
    ends = np.concatenate([np.minimum(ends, N_LEVELS - 1), np.full((n_rows, 1), N_LEVELS - 1)], axis=1)
    at = np.arange(n_rows)[:, None]
    in_bin = np.diff(cumulative_totals[at, ends], axis=1, prepend=0.0)
    positive = np.diff(cumulative_positives[at, ends], axis=1, prepend=0.0)
    n, n_positive = about.n_total[:, None], about.n_positive[:, None]
    total = np.zeros(n_rows)
    for count, size in ((positive, n_positive), (in_bin - positive, n - n_positive)):
        share = ratio(count * n, in_bin * size)
        total += np.sum(ratio(count, n) * np.log(np.where(share > 0, share, 1.0)), axis=1)
    return np.maximum(total, 0.0)
