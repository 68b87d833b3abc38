"""Metrics against scikit-learn, against hand-made answers, and in the cases where scikit-learn only warns."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from sparse_probing.errors import DataError
from sparse_probing.probes.metrics import (
    classification_metrics,
    curve_metrics,
    regression_metrics,
    score_metrics,
    threshold_metrics,
)
from sparse_probing.schemas import CLASSIFICATION_METRICS, REGRESSION_METRICS


def oracle(y: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Scikit-learn's values, with 0 where it gives NaN."""
    predicted = np.where(scores > 0, 1, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "mcc": sk.matthews_corrcoef(y, predicted),
            "kappa": sk.cohen_kappa_score(y, predicted),
            "fowlkes_mallows": sk.fowlkes_mallows_score(y, predicted),
            "f1": sk.f1_score(y, predicted),
            "f05": sk.fbeta_score(y, predicted, beta=0.5),
            "f2": sk.fbeta_score(y, predicted, beta=2),
            "accuracy": sk.accuracy_score(y, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
            "precision": sk.precision_score(y, predicted),
            "recall": sk.recall_score(y, predicted),
            "roc_auc": sk.roc_auc_score(y, scores),
            "average_precision": sk.average_precision_score(y, scores),
        }
        precision, recall, _ = sk.precision_recall_curve(y, scores)
        found["pr_auc"] = sk.auc(recall, precision) if (y > 0).any() else 0.0
    return {name: 0.0 if np.isnan(value) else float(value) for name, value in found.items()}


@given(st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=1, max_size=60))
@settings(max_examples=150, deadline=None)
def test_equal_to_scikit_learn(samples: list[tuple[bool, int]]) -> None:
    y = np.array([1 if positive else -1 for positive, _ in samples])
    scores = np.array([float(score) for _, score in samples])
    found = classification_metrics(y, scores)
    assert set(found) == set(CLASSIFICATION_METRICS)
    assert found == pytest.approx(oracle(y, scores), abs=1e-9)


def test_known_confusion() -> None:
    found = threshold_metrics(6, 2, 4, 8)
    assert found["precision"] == pytest.approx(0.75)
    assert found["recall"] == pytest.approx(0.6)
    assert found["f1"] == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert found["mcc"] == pytest.approx((6 * 8 - 2 * 4) / np.sqrt(8 * 10 * 10 * 12))
    assert found["kappa"] == pytest.approx((0.7 - 0.5) / 0.5)


def test_always_positive_at_one_fifth_has_f1_of_a_third() -> None:
    found = threshold_metrics(20, 80, 0, 0)
    assert found["f1"] == pytest.approx(1 / 3)
    assert found["mcc"] == 0
    assert found["kappa"] == 0


def test_curves_of_a_perfect_and_a_useless_score() -> None:
    y = np.array([1, 1, -1, -1, -1])
    assert score_metrics(y, [5, 4, 3, 2, 1]) == pytest.approx({"roc_auc": 1, "pr_auc": 1, "average_precision": 1})
    useless = score_metrics(y, np.zeros(5))
    assert useless["roc_auc"] == pytest.approx(0.5)
    assert useless["average_precision"] == pytest.approx(0.4)
    assert useless["pr_auc"] == pytest.approx(0.7)  # the trapezoid from (0, 1) to (1, 0.4)


def test_average_precision_is_of_scores_not_of_predictions() -> None:
    y = np.array([1, -1, 1, -1])
    scores = np.array([4.0, 3.0, 2.0, 1.0])  # all predicted positive
    assert classification_metrics(y, scores)["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_levels_without_samples_change_nothing() -> None:
    positives, totals = np.array([[2.0, 1.0, 1.0]]), np.array([[3.0, 4.0, 2.0]])
    padded_p, padded_t = np.zeros((1, 8)), np.zeros((1, 8))
    padded_p[0, [1, 4, 6]], padded_t[0, [1, 4, 6]] = positives, totals
    plain, padded = curve_metrics(positives, totals), curve_metrics(padded_p, padded_t)
    for name in plain:
        assert padded[name] == pytest.approx(plain[name], abs=1e-15)


def test_no_samples_is_unknown_and_one_class_is_defined() -> None:
    assert all(np.isnan(value) for value in threshold_metrics(0, 0, 0, 0).values())
    one_class = classification_metrics([1, 1, 1], [1.0, -1.0, 2.0])
    assert one_class["roc_auc"] == 0
    assert one_class["balanced_accuracy"] == pytest.approx(2 / 3)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        classification_metrics([1, -1], [np.nan, 1.0])
    with pytest.raises(DataError, match="shape"):
        classification_metrics([1, -1], [1.0])


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_regression_equals_scikit_learn_and_scipy(pairs: list[tuple[int, int]]) -> None:
    truth, guess = (np.array(column, float) for column in zip(*pairs, strict=True))
    found = regression_metrics(truth, guess)
    assert set(found) == set(REGRESSION_METRICS)
    expected = {
        "r2": sk.r2_score(truth, guess),
        "explained_variance": sk.explained_variance_score(truth, guess),
        "mean_squared_error": sk.mean_squared_error(truth, guess),
        "root_mean_squared_error": sk.root_mean_squared_error(truth, guess),
        "mean_absolute_error": sk.mean_absolute_error(truth, guess),
        "median_absolute_error": sk.median_absolute_error(truth, guess),
        "max_error": sk.max_error(truth, guess),
    }
    varied = np.ptp(truth) > 0 and np.ptp(guess) > 0
    for name, function in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        expected[name] = function(truth, guess).statistic if varied else 0.0
    assert found == pytest.approx(expected, abs=1e-9)
