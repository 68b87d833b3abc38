"""Intervals of scores and of differences: known answers, coverage, few groups, no errors at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import matthews_corrcoef, r2_score

from sparse_probing.errors import DataError, InputError
from sparse_probing.probes.data import prepare
from sparse_probing.probes.single import score_neurons
from sparse_probing.probes.uncertainty import (
    difference_interval,
    neuron_intervals,
    r2_difference_interval,
    r2_interval,
    score_interval,
)
from sparse_probing.schemas import THRESHOLD_METRICS

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def agreeing(n_groups: int, size: int, seed: int, quality: float = 0.85) -> Sample:
    """Labels constant in groups, predictions right for whole groups with the given probability."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n_groups) < 0.4
    guess = truth ^ (rng.random(n_groups) > quality)
    groups = np.repeat(np.arange(n_groups), size)
    return truth[groups], guess[groups], groups


def rows(n_positive: int, n_negative: int, recall: float, specificity: float, seed: int) -> Sample:
    """Rows that are groups of their own, right independently of one another."""
    rng = np.random.default_rng(seed)
    positive = np.arange(n_positive + n_negative) < n_positive
    right = rng.random(len(positive)) < np.where(positive, recall, specificity)
    return positive, positive == right, np.arange(len(positive))


def mcc(recall: float, specificity: float, prevalence: float) -> float:
    """From the definition, not from the package."""
    tp, fp = prevalence * recall, (1 - prevalence) * (1 - specificity)
    fn, tn = prevalence - tp, 1 - prevalence - fp
    return float((tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


@pytest.mark.parametrize(("n_right", "metric"), [(40, "recall"), (37, "recall"), (20, "recall")])
def test_interval_of_single_rows_is_that_of_a_beta_posterior(n_right: int, metric: str) -> None:
    positive = np.arange(100) < 40
    predicted = np.arange(100) < n_right
    low, high = score_interval(positive, predicted, np.arange(100), metric=metric, n_bootstrap=40_000)
    wrong = 40 - n_right
    assert low[0] == pytest.approx(beta.ppf(0.025, n_right, wrong + 0.5), abs=0.004)
    assert high[0] == pytest.approx(beta.ppf(0.975, n_right + 0.5, wrong) if wrong else 1.0, abs=0.004)


COVERED: dict[str, tuple[float, Callable[[int], Sample]]] = {
    "few errors": (mcc(0.96, 0.995, 0.1), lambda seed: rows(12, 108, 0.96, 0.995, seed)),
    "hardly an error": (mcc(0.99, 0.999, 0.1), lambda seed: rows(12, 108, 0.99, 0.999, seed)),
    "eleven groups": (mcc(0.9, 0.9, 0.5), lambda seed: rows(6, 5, 0.9, 0.9, seed)),
}


@pytest.mark.parametrize("condition", COVERED)
def test_intervals_cover_where_a_bootstrap_of_groups_does_not(condition: str) -> None:
    truth, draw = COVERED[condition]
    inside = 0
    for seed in range(200):
        low, high = score_interval(*draw(seed), rng=seed, n_bootstrap=400)
        inside += bool(low[0] <= truth <= high[0])
    assert inside >= 0.92 * 200  # 0.95 less two standard errors


def test_intervals_cover_where_whole_groups_are_right_or_wrong() -> None:
    inside = 0
    for seed in range(200):
        positive, predicted, groups = agreeing(60, 4, seed + 1)
        truth = mcc(0.85, 0.85, positive.mean())
        low, high = score_interval(positive, predicted, groups, n_bootstrap=400, rng=seed)
        inside += bool(low[0] <= truth <= high[0])
    assert inside >= 0.92 * 200


def test_weighing_rows_instead_of_groups_would_be_too_sure() -> None:
    y, guess, groups = agreeing(40, 10, 5)
    by_group = np.ptp(score_interval(y, guess, groups, rng=0))
    by_row = np.ptp(score_interval(y, guess, np.arange(len(y)), rng=0))
    assert by_group > 2 * by_row


def test_fewer_groups_give_wider_intervals_and_one_gives_none() -> None:
    widths = []
    for n_groups in (8, 80):
        low, high = score_interval(*agreeing(n_groups, 4, 3), rng=0)
        widths.append(high[0] - low[0])
    assert widths[0] > widths[1]
    y, guess, _ = agreeing(8, 4, 3)
    low, high = score_interval(y, guess, np.zeros(len(y)))
    assert np.isnan(low[0])
    assert np.isnan(high[0])


@pytest.mark.parametrize("metric", THRESHOLD_METRICS)
@pytest.mark.parametrize("predicted", ["right", "wrong", "always positive", "never positive"])
def test_no_interval_has_width_zero_and_all_hold_their_score(metric: str, predicted: str) -> None:
    y, _, groups = agreeing(30, 3, 4)
    guess = {"right": y, "wrong": ~y, "always positive": np.ones_like(y), "never positive": np.zeros_like(y)}[predicted]
    low, high = score_interval(y, guess, groups, metric=metric)
    assert 0 < high[0] - low[0] < 1.2
    if metric == "mcc":
        assert low[0] <= matthews_corrcoef(y, guess) <= high[0]


def test_with_no_error_the_lower_limit_depends_on_the_number_of_groups_and_not_of_rows() -> None:
    y = np.arange(40) % 2 == 0
    one = score_interval(y, y, np.arange(40))
    many = score_interval(np.repeat(y, 9), np.repeat(y, 9), np.repeat(np.arange(40), 9))
    assert one[1][0] == many[1][0] == 1
    assert one[0][0] == pytest.approx(many[0][0])
    assert 0.7 < one[0][0] < 0.9


def test_intervals_of_many_probes_equal_those_of_each() -> None:
    y, guess, groups = agreeing(50, 3, 1)
    both = np.column_stack([guess, ~guess, y])
    low, high = score_interval(y, both, groups, rng=7)
    alone = score_interval(y, guess, groups, rng=7)
    assert (low[0], high[0]) == pytest.approx((alone[0][0], alone[1][0]))
    # A probe that says the opposite has the opposite interval: right and wrong change places.
    assert (low[1], high[1]) == pytest.approx((-high[0], -low[0]), abs=1e-6)
    assert [len(part) for part in score_interval(y, both[:, :0], groups)] == [0, 0]
    many_low, _ = score_interval(y, np.tile(both, 100), groups, rng=7)
    np.testing.assert_allclose(many_low[:3], low)
    np.testing.assert_allclose(many_low[-3:], low)


def test_names_and_order_of_groups_do_not_matter_to_what_is_measured() -> None:
    y, guess, groups = agreeing(50, 3, 1)
    order = np.random.default_rng(0).permutation(len(y))
    one = score_interval(y, guess, groups)
    other = score_interval(y[order], guess[order], np.array([f"{group:03d}" for group in groups])[order])
    np.testing.assert_allclose(one, other)


def test_neuron_intervals_surround_the_reported_mcc(planted) -> None:
    scores = score_neurons(planted.X, planted.y, planted.groups, **planted.keywords)
    neurons = np.array([3, 11, 20])
    data = prepare(planted.X, planted.y, planted.groups, **planted.keywords)
    low, high = neuron_intervals(scores, data, neurons)
    mcc = scores.metrics["test"]["mcc"][neurons]
    assert (low < mcc).all()
    assert (mcc <= high + 1e-9).all()


def test_intervals_refuse_what_they_cannot_do() -> None:
    with pytest.raises(InputError, match="fowlkes_mallows"):
        score_interval([1, -1], [True, False], [0, 1], metric="roc_auc")
    with pytest.raises(DataError, match="3 groups"):
        score_interval([1, -1], [True, False], [0, 1, 2])
    with pytest.raises(DataError, match="2 probes beside 3"):
        difference_interval([1, -1], np.ones((2, 2), bool), np.ones((2, 3), bool), [0, 1])


def paired(n_groups: int, seed: int, one: float, other: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two probes on the same rows, right with the given probabilities, and mostly about the same rows."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), 3)
    positive = (rng.random(n_groups) < 0.4)[groups]
    hard = (rng.random(n_groups)[groups] + rng.random(len(groups))) / 2
    # The distribution function of the mean of two uniforms.
    hard = np.where(hard < 0.5, 2 * hard**2, 1 - 2 * (1 - hard) ** 2)
    return positive, positive ^ (hard > one), positive ^ (hard > other), groups


@pytest.mark.parametrize(("one", "other"), [(0.9, 0.8), (0.97, 0.97), (0.999, 0.98)])
def test_intervals_of_differences_cover(one: float, other: float) -> None:
    inside = 0
    for seed in range(200):
        positive, first, second, groups = paired(60, seed, one, other)
        share = positive.mean()
        truth = mcc(one, one, share) - mcc(other, other, share)
        low, high = difference_interval(positive, first, second, groups, n_bootstrap=400, rng=seed)
        inside += bool(low[0] <= truth <= high[0])
    assert inside >= 0.92 * 200


def test_a_difference_on_shared_rows_is_seen_where_two_intervals_overlap() -> None:
    positive, first, second, groups = paired(300, 1, 0.9, 0.86)
    alone = score_interval(positive, np.column_stack([first, second]), groups)
    assert alone[0][0] < alone[1][1]
    low, _ = difference_interval(positive, first, second, groups)
    assert low[0] > 0


def test_differences_are_antisymmetric_and_never_of_width_zero() -> None:
    positive, first, second, groups = paired(60, 1, 0.9, 0.8)
    low, high = difference_interval(positive, first, second, groups, rng=3)
    back = difference_interval(positive, second, first, groups, rng=3)
    assert (back[0][0], back[1][0]) == pytest.approx((-high[0], -low[0]))
    low, high = difference_interval(positive, first, first, groups)
    assert low[0] < 0 < high[0]
    both = difference_interval(positive, np.column_stack([first, second]), first, groups)
    assert (both[0][0], both[1][0]) == pytest.approx((low[0], high[0]))


def regression(n: int, seed: int) -> Sample:
    """R² is 0 in the population: the error has the target's variance."""
    rng = np.random.default_rng(seed)
    target = rng.standard_normal(n)
    return target, target + rng.standard_normal(n), np.arange(n)


@pytest.mark.parametrize("n_groups", [15, 120])
def test_r2_interval_covers_the_truth(n_groups: int) -> None:
    inside = 0
    for seed in range(200):
        low, high = r2_interval(*regression(n_groups, seed), n_bootstrap=400, rng=seed)
        inside += low <= 0 <= high
    assert inside >= 0.91 * 200


def test_r2_interval_is_about_that_of_resampled_groups_where_these_are_many() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 5)
    target = rng.standard_normal(2000) + np.repeat(rng.standard_normal(400), 5)
    predicted = target + 0.7 * rng.standard_normal(2000)
    low, high = r2_interval(target, predicted, groups, n_bootstrap=2000, rng=1)
    # Oracle: groups drawn one by one, R² from scikit-learn, plain percentiles.
    draws = []
    for _ in range(1000):
        rows = (rng.integers(0, 400, 400)[:, None] * 5 + np.arange(5)).ravel()
        draws.append(r2_score(target[rows], predicted[rows]))
    expected = np.quantile(draws, [0.025, 0.975])
    assert low < r2_score(target, predicted) < high
    np.testing.assert_allclose([low, high], expected, atol=0.012)
    assert low < expected[0]


def test_r2_interval_needs_two_groups_and_varied_targets() -> None:
    assert np.isnan(r2_interval([1.0, 2.0], [1.0, 2.0], [0, 0])).all()
    assert np.isnan(r2_interval([1.0, 1.0], [1.0, 2.0], [0, 1])).all()


def test_r2_differences_cover_and_are_antisymmetric() -> None:
    inside = 0
    for seed in range(200):
        target, noisy, groups = regression(100, seed)
        other = target + 0.5 * (noisy - target) + 0.5 * np.random.default_rng(900 + seed).standard_normal(100)
        low, high = r2_difference_interval(target, other, noisy, groups, n_bootstrap=400, rng=seed)
        inside += low <= 0.5 <= high  # errors of variance 0.5 and 1
        back = r2_difference_interval(target, noisy, other, groups, n_bootstrap=400, rng=seed)
        assert back == pytest.approx((-high, -low))
    assert inside >= 0.91 * 200
