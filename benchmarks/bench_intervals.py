"""Coverage of 95 % intervals under simulation: MCC, F1 and R², differences, and what a plain bootstrap of groups covers.

    python -m benchmarks.bench_intervals [--conditions 50] [--draws 300] [--seed 0] [--processes 2]

Conditions are drawn from ranges that studies meet. Classes: MCC from 0.3 to 0.999, prevalence from 0.05 to 0.5, 11 to 2,000
groups of 1 to 20 rows, pure or mixed in class, errors correlated within groups at 0, 0.2 or 0.5, errors of both classes
alike, mostly on positives, or as many in each class. Regression: R² from 0 to 0.99, 11 to 400 groups, targets and errors
correlated within groups, errors normal, uniform or of Student's law with four degrees of freedom, of one spread or several.
The truth is the score at the population's recall and specificity and at the sample's own share of positives.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.metrics import threshold_metrics
from sparse_probing.probes.uncertainty import difference_interval, r2_interval, score_interval

Floats = NDArray[np.float64]
N_BOOTSTRAP = 500
FEW = 20


@dataclass(frozen=True)
class Classes:
    """One condition of a classification."""

    mcc: float
    prevalence: float
    n_groups: int
    rows_a_group: int
    mixed: bool
    correlation: float
    errors: str

    def rates(self) -> tuple[float, float]:
        """Recall and specificity that give the MCC, by bisection."""
        p = self.prevalence
        of_positive, of_negative = {
            "alike": (1.0, 1.0),
            "counts": (1.0, p / (1 - p)),
            "misses": (1.0, 0.1 * p / (1 - p)),
        }[self.errors]
        low, high = 0.0, 1.0 - 1e-9
        for _ in range(60):
            middle = (low + high) / 2
            if score("mcc", 1 - of_positive * middle, 1 - of_negative * middle, p) > self.mcc:
                low = middle
            else:
                high = middle
        return 1 - of_positive * low, 1 - of_negative * low


@dataclass(frozen=True)
class Targets:
    """One condition of a regression."""

    r2: float
    n_groups: int
    rows_a_group: int
    target_correlation: float
    error_correlation: float
    target_law: str
    error_law: str
    several_spreads: bool


def score(metric: str, recall: float, specificity: float, prevalence: float) -> float:
    """A metric at two rates and a share of positives; of a million rows."""
    n = np.array([prevalence, 1 - prevalence]) * 1e6
    return float(
        threshold_metrics(n[0] * recall, n[1] * (1 - specificity), n[0] * (1 - recall), n[1] * specificity)[metric]
    )


def sizes(rng: np.random.Generator, n_groups: int, rows_a_group: int) -> NDArray[np.int64]:
    """(n_groups,) rows, uniform from 1 to twice the mean less one."""
    return rng.integers(1, 2 * rows_a_group, n_groups)


def correct(rng: np.random.Generator, rate: float, group: NDArray[np.int64], correlation: float) -> NDArray[np.bool_]:
    """(n_rows,) right or wrong, with that correlation within groups (a beta-binomial law)."""
    n_groups = int(group.max(initial=-1)) + 1
    shares = np.full(n_groups, rate)
    if correlation and 0 < rate < 1:
        strength = 1 / correlation - 1
        shares = rng.beta(rate * strength, (1 - rate) * strength, n_groups)
    return np.asarray(rng.random(len(group)) < shares[group])


def sample_classes(
    rng: np.random.Generator, condition: Classes
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]] | None:
    """Labels, predictions and groups; None where a class is missing."""
    group = np.repeat(np.arange(condition.n_groups), sizes(rng, condition.n_groups, condition.rows_a_group))
    if condition.mixed:
        positive = rng.random(len(group)) < condition.prevalence
    else:
        positive = (rng.random(condition.n_groups) < condition.prevalence)[group]
    if positive.all() or not positive.any():
        return None
    rates = condition.rates()
    right = np.where(
        positive,
        correct(rng, rates[0], group, condition.correlation),
        correct(rng, rates[1], group, condition.correlation),
    )
    return positive, positive == right, group


def plain_bootstrap(positive: NDArray[np.bool_], predicted: NDArray[np.bool_], group: NDArray[np.int64]) -> Floats:
    """Percentile interval of the MCC over groups drawn with replacement, for comparison."""
    n_groups = int(group.max()) + 1
    cells = [positive & predicted, ~positive & predicted, positive & ~predicted, ~positive & ~predicted]
    counts = np.stack([np.bincount(group, cell, minlength=n_groups) for cell in cells], axis=1)
    drawn = np.random.default_rng(0).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=400) @ counts
    drawn = drawn[(drawn[:, 0] + drawn[:, 2] > 0) & (drawn[:, 1] + drawn[:, 3] > 0)]
    if not len(drawn):
        return np.array([np.nan, np.nan])
    return np.asarray(np.quantile(threshold_metrics(*drawn.T)["mcc"], [0.025, 0.975]))


def cover_classes(condition: Classes, n_draws: int, seed: int) -> dict[str, float]:
    """Shares of draws whose interval holds the truth, and mean widths."""
    rng = np.random.default_rng(seed)
    rates = condition.rates()
    held: dict[str, list[float]] = {name: [] for name in ("mcc", "f1", "width", "difference", "plain")}
    other = Classes(**{**vars(condition), "mcc": max(0.2, condition.mcc - 0.1)})
    for draw in range(n_draws):
        sample = sample_classes(rng, condition)
        if sample is None:
            continue
        positive, predicted, group = sample
        share = float(positive.mean())
        for metric in ("mcc", "f1"):
            low, high = score_interval(positive, predicted, group, metric=metric, rng=draw, n_bootstrap=N_BOOTSTRAP)
            held[metric].append(low[0] <= score(metric, *rates, share) <= high[0])
            if metric == "mcc":
                held["width"].append(high[0] - low[0])
        low, high = plain_bootstrap(positive, predicted, group)
        held["plain"].append(bool(low <= score("mcc", *rates, share) <= high))
        # A second probe that errs on rows of its own.
        right = np.where(positive, *(correct(rng, rate, group, condition.correlation) for rate in other.rates()))
        low, high = difference_interval(
            positive, predicted, positive == right, group, rng=draw, n_bootstrap=N_BOOTSTRAP
        )
        held["difference"].append(
            bool(low[0] <= score("mcc", *rates, share) - score("mcc", *other.rates(), share) <= high[0])
        )
    return {name: float(np.mean(values)) for name, values in held.items()}


def noise(rng: np.random.Generator, law: str, size: int) -> Floats:
    """(size,) numbers of variance 1."""
    if law == "normal":
        return rng.standard_normal(size)
    if law == "uniform":
        return rng.uniform(-np.sqrt(3), np.sqrt(3), size)
    return np.asarray(rng.standard_t(4, size) / np.sqrt(2))


def cover_targets(condition: Targets, n_draws: int, seed: int) -> dict[str, float]:
    """Share of draws whose R² interval holds the truth, and mean width."""
    rng = np.random.default_rng(seed)
    held, widths = [], []
    for draw in range(n_draws):
        group = np.repeat(np.arange(condition.n_groups), sizes(rng, condition.n_groups, condition.rows_a_group))

        def clustered(law: str, correlation: float, group: NDArray[np.int64] = group) -> Floats:
            shared = noise(rng, law, condition.n_groups)[group]
            return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * noise(rng, law, len(group))

        target = clustered(condition.target_law, condition.target_correlation)
        error = clustered(condition.error_law, condition.error_correlation) * np.sqrt(1 - condition.r2)
        if condition.several_spreads:
            error *= np.sqrt(rng.gamma(2, 0.5, condition.n_groups))[group]
        low, high = r2_interval(target, target + error, group, rng=draw, n_bootstrap=N_BOOTSTRAP)
        held.append(low <= condition.r2 <= high)
        widths.append(high - low)
    return {"r2": float(np.mean(held)), "width": float(np.mean(widths))}


def conditions(rng: np.random.Generator, n: int) -> tuple[list[Classes], list[Targets]]:
    """n conditions of each task, drawn from the ranges that the module names."""

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    classes = [
        Classes(
            mcc=pick(0.3, 0.5, 0.7, 0.9, 0.96, 0.99, 0.999),
            prevalence=float(rng.uniform(0.05, 0.5)),
            n_groups=pick(11, 15, 20, 32, 60, 120, 400, 2000),
            rows_a_group=pick(1, 4, 10),
            mixed=bool(pick(False, True)),
            correlation=pick(0.0, 0.2, 0.5),
            errors=pick("alike", "counts", "misses"),
        )
        for _ in range(n)
    ]
    targets = [
        Targets(
            r2=pick(0.0, 0.3, 0.6, 0.9, 0.99),
            n_groups=pick(11, 20, 40, 100, 400),
            rows_a_group=pick(1, 4, 10),
            target_correlation=pick(0.0, 0.3, 0.6),
            error_correlation=pick(0.0, 0.3, 0.6),
            target_law=pick("normal", "uniform"),
            error_law=pick("normal", "t4", "uniform"),
            several_spreads=bool(pick(False, True)),
        )
        for _ in range(n)
    ]
    return classes, targets


def smallest_difference(n_groups: int) -> float:
    """Upper limit of the difference of two perfect probes that agree on every row, half of them positive."""
    positive = np.arange(n_groups) % 2 == 0
    _, high = difference_interval(positive, positive, positive, np.arange(n_groups), n_bootstrap=4000)
    return float(high[0])


def summary(name: str, coverage: Sequence[float], few: Sequence[bool]) -> str:
    """A row of the table."""
    values, small = np.array(coverage), np.array(few)
    lowest = [f"{values[part].min():.3f}" if part.any() else "-" for part in (~small, small)]
    return f"| {name} | {lowest[0]} | {lowest[1]} | {np.median(values):.3f} |"


def main() -> None:
    """Print lowest and median coverage over the conditions, and the smallest differences that can be seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", type=int, default=50)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    asked = parser.parse_args()
    classes, targets = conditions(np.random.default_rng(asked.seed), asked.conditions)
    seeds = range(asked.seed, asked.seed + asked.conditions)
    with ProcessPoolExecutor(asked.processes) as pool:
        draws = [asked.draws] * asked.conditions
        of_classes = list(pool.map(cover_classes, classes, draws, seeds))
        of_targets = list(pool.map(cover_targets, targets, draws, seeds))
    print(f"{asked.conditions} conditions of each task, {asked.draws} draws each, seed {asked.seed}\n")
    print(f"| interval | lowest coverage, {FEW} groups or more | fewer groups | median |\n|---|---|---|---|")
    few = [condition.n_groups < FEW for condition in classes]
    for name, key in (
        ("MCC", "mcc"),
        ("F1", "f1"),
        ("difference of MCC", "difference"),
        ("plain bootstrap of MCC", "plain"),
    ):
        print(summary(name, [found[key] for found in of_classes], few))
    print(summary("R²", [found["r2"] for found in of_targets], [condition.n_groups < FEW for condition in targets]))
    worst = np.argsort([found["mcc"] for found in of_classes])[:3]
    for place in worst:
        print(f"\nlow: {classes[place]}: {of_classes[place]}")
    for place in np.argsort([found["r2"] for found in of_targets])[:3]:
        print(f"\nlow: {targets[place]}: {of_targets[place]}")
    print("\n| groups | smallest difference of MCC seen |\n|---|---|")
    for n_groups in (10, 20, 50, 100, 200, 500, 1000):
        print(f"| {n_groups} | {smallest_difference(n_groups):.3f} |")


if __name__ == "__main__":
    main()
