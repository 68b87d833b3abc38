"""Own solvers against scikit-learn's, and against the conditions of optimality."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sparse_probing.probes.solvers import elastic_net, logistic
from sparse_probing.probes.solvers.elastic_net import fit_elastic_net
from sparse_probing.probes.solvers.logistic import balanced_weights, fit_logistic, plain_scaled, scale_activations


def problem(n_samples: int, n_neurons: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, n_neurons)) * rng.uniform(0.1, 30, n_neurons) + rng.normal(size=n_neurons) * 5
    latent = (X[:, : min(6, n_neurons)] / X[:, : min(6, n_neurons)].std(axis=0)).sum(axis=1)
    return X, latent - latent.mean() + rng.normal(size=n_samples) > 1


@pytest.mark.parametrize("shape", [(300, 1), (300, 20), (60, 200)])
@pytest.mark.parametrize("c", [0.1, 1.0, 100.0])
def test_logistic_equals_scikit_learn(shape, c) -> None:
    X, positive = problem(*shape)
    Z = (X - X.mean(axis=0)) / (10 * X.std(axis=0))
    reference = LogisticRegression(C=c, class_weight="balanced", solver="lbfgs", tol=1e-12, max_iter=20000)
    reference.fit(Z, positive)
    found = fit_logistic(X, positive, c=c)
    assert found.converged
    np.testing.assert_allclose(found.coef_scaled, reference.coef_[0], atol=2e-4 * np.abs(reference.coef_).max())
    np.testing.assert_allclose(found.scores(X), reference.decision_function(Z), atol=2e-3)


def test_the_span_of_the_samples_gives_the_same_probe() -> None:
    X, positive = problem(80, 120)
    whole = fit_logistic(X, positive, scaled=plain_scaled(X), tolerance=1e-9)
    reduced = fit_logistic(X, positive, tolerance=1e-9)
    assert scale_activations(X).Z.shape[1] < 120
    np.testing.assert_allclose(reduced.coef, whole.coef, rtol=1e-6, atol=1e-9)
    assert reduced.objective == pytest.approx(whole.objective, rel=1e-9)


def test_the_gradient_vanishes_and_constant_neurons_get_nothing() -> None:
    X, positive = problem(200, 10)
    X[:, 4] = 3.25
    found = fit_logistic(X, positive, c=5.0)
    Z = plain_scaled(X).Z
    sign = np.where(positive, 1.0, -1.0)
    pull = 5.0 * balanced_weights(positive) * sign / (1 + np.exp(sign * found.scores(X)))
    np.testing.assert_allclose(found.coef_scaled, Z.T @ pull, atol=1e-7)
    assert pull.sum() == pytest.approx(0, abs=1e-7)
    assert found.coef[4] == 0


def test_separable_classes_converge() -> None:
    X = np.array([[-3.0], [-2.0], [2.0], [3.0]])
    assert fit_logistic(X, X[:, 0] > 0, c=1e6).converged


def test_an_unfinished_fit_says_so(monkeypatch) -> None:
    X, positive = problem(100, 5)
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 1)
    monkeypatch.setattr(elastic_net, "MAX_ITERATIONS", 1)
    assert not fit_logistic(X, positive, c=1e4).converged
    assert not fit_elastic_net(X, positive, c=1e4, l1_ratio=0.5).converged


@pytest.mark.parametrize(("c", "l1_ratio"), [(0.05, 0.9), (0.4, 0.67), (1.6, 0.2), (12.8, 0.1), (5.0, 1.0)])
def test_elastic_net_equals_scikit_learn(c, l1_ratio) -> None:
    X, positive = problem(250, 40)
    Z = plain_scaled(X).Z
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = LogisticRegression(
            C=c,
            l1_ratio=l1_ratio,
            penalty="elasticnet",
            class_weight="balanced",
            solver="saga",
            tol=1e-9,
            max_iter=20000,
            random_state=0,
        ).fit(Z, positive)
    found = fit_elastic_net(X, positive, c=c, l1_ratio=l1_ratio, tolerance=1e-7)
    assert found.converged

    def objective(beta: np.ndarray, intercept: float) -> float:
        sign = np.where(positive, 1.0, -1.0)
        loss = np.logaddexp(0.0, -sign * (Z @ beta + intercept))
        return float(
            l1_ratio * np.abs(beta).sum() + 0.5 * (1 - l1_ratio) * beta @ beta + c * balanced_weights(positive) @ loss
        )

    theirs = objective(reference.coef_[0], reference.intercept_[0])
    assert found.objective <= theirs + 1e-7 * abs(theirs)
    np.testing.assert_allclose(found.coef_scaled, reference.coef_[0], atol=2e-3 * max(1, np.abs(reference.coef_).max()))
    np.testing.assert_array_equal(found.coef_scaled[np.abs(reference.coef_[0]) < 1e-9], 0.0)


def test_elastic_net_meets_the_subgradient_conditions_with_more_neurons_than_samples() -> None:
    X, positive = problem(60, 150)
    c, share = 2.0, 0.5
    found = fit_elastic_net(X, positive, c=c, l1_ratio=share, tolerance=1e-7)
    assert found.converged
    Z = plain_scaled(X).Z
    sign = np.where(positive, 1.0, -1.0)
    pull = Z.T @ (c * balanced_weights(positive) * sign / (1 + np.exp(sign * found.scores(X))))
    beta = found.coef_scaled
    active = beta != 0
    assert 0 < active.sum() < 60
    np.testing.assert_allclose(pull[active], (share * np.sign(beta) + (1 - share) * beta)[active], atol=1e-5)
    assert np.abs(pull[~active]).max() <= share + 1e-5


def test_a_start_changes_the_way_and_not_the_end() -> None:
    X, positive = problem(200, 30)
    cold = fit_elastic_net(X, positive, c=1.0, l1_ratio=0.5, tolerance=1e-8)
    warm = fit_elastic_net(X, positive, c=1.0, l1_ratio=0.5, tolerance=1e-8, start=np.full(30, 0.3))
    np.testing.assert_allclose(warm.coef_scaled, cold.coef_scaled, atol=1e-6)
