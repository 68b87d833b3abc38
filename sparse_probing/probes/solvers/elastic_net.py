"""Balanced logistic regression with an elastic-net penalty, by an orthant-wise Newton method.

Objective, in scikit-learn's convention for ``penalty="elasticnet"``:
ρ‖β‖₁ + ½(1 − ρ)‖β‖² + c Σ w_i log(1 + exp(−y_i (α + z_iᵀβ))), z and w as in `logistic`.

Each iteration keeps to the orthant that the subgradient points into (Andrew and Gao 2007), takes a Newton step on the
coefficients that are free there, and searches along it with the path projected on the orthant. Where that fails to
descend, one proximal-gradient step is taken instead, which always does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from sparse_probing.probes.labelling import Labels, as_positive
from sparse_probing.probes.solvers.logistic import LogisticFit, Scaled, balanced_weights, plain_scaled

Floats = NDArray[np.float64]
MAX_ITERATIONS = 100


@dataclass(frozen=True, eq=False)
class _Point:
    """Coefficients (intercept first), their margins y_i (α + z_iᵀβ), and the objective there."""

    theta: Floats
    margin: Floats
    value: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """The objective: design with a leading column of ones, signs, weights, penalties per coefficient."""

    design: Floats
    sign: Floats
    weights: Floats
    lasso: Floats
    ridge: Floats

    def at(self, theta: Floats) -> _Point:
        margin = self.sign * (self.design @ theta)
        penalty = float(self.lasso @ np.abs(theta) + 0.5 * self.ridge @ theta**2)
        return _Point(theta, margin, penalty + float(self.weights @ np.logaddexp(0.0, -margin)))

    def search(self, point: _Point, step: Floats, orthant: Floats, steepest: Floats) -> _Point | None:
        """Backtrack along the step, projected on the orthant; None if nothing descends."""
        length = 1.0
        while length > 1e-4:
            theta = point.theta + length * step
            theta[1:] = np.where(theta[1:] * orthant[1:] > 0, theta[1:], 0.0)
            trial = self.at(theta)
            enough = point.value + 1e-4 * float(steepest @ (theta - point.theta))
            if trial.value <= enough and trial.value < point.value:
                return trial
            length *= 0.5
        return None

    def proximal_step(self, point: _Point, smooth: Floats) -> _Point | None:
        """One proximal-gradient step with backtracking; None at the limit of precision."""
        length = 1.0
        while length > 1e-12:
            moved = point.theta - length * smooth
            trial = self.at(np.sign(moved) * np.maximum(np.abs(moved) - length * self.lasso, 0.0))
            if trial.value < point.value - 1e-14 * abs(point.value):
                return trial
            length *= 0.5
        return None


def fit_elastic_net(
    X: Floats,
    positive: Labels,
    *,
    c: float,
    l1_ratio: float,
    tolerance: float = 1e-4,
    start: Floats | None = None,
    scaled: Scaled | None = None,
) -> LogisticFit:
    """Fit one elastic net.

    Parameters
    ----------
    X:
        (n_samples, n_neurons) training activations; not looked at where `scaled` is given.
    positive:
        (n_samples,) labels of two classes, both present: booleans, 0 and 1, or -1 and +1.
    c, l1_ratio:
        Inverse strength and the ℓ1 share ρ of the penalty.
    tolerance:
        Converged when no component of the smallest subgradient exceeds tolerance × max(1, c n / 100).
    start:
        (n_neurons,) scaled coefficients to start from.
    scaled:
        `logistic.plain_scaled(X)`, to share it between fits.
    """
    data = scaled or plain_scaled(X)
    positive = as_positive(positive)
    n_samples, n_neurons = data.Z.shape
    weights = c * balanced_weights(positive)
    lasso, ridge = np.full(n_neurons + 1, l1_ratio), np.full(n_neurons + 1, 1.0 - l1_ratio)
    lasso[0] = ridge[0] = 0.0
    design = np.concatenate([np.ones((n_samples, 1)), data.Z], axis=1)
    problem = _Problem(design, np.where(positive, 1.0, -1.0), weights, lasso, ridge)
    narrow = design.astype(np.float32)
    limit = tolerance * max(1.0, c * n_samples / 100)
    point = problem.at(np.concatenate([[0.0], np.zeros(n_neurons) if start is None else start]))
    converged = False
    n_iterations = 0
    while True:
        theta = point.theta
        probability = 1.0 / (1.0 + np.exp(np.clip(point.margin, -700, 700)))
        smooth = ridge * theta - design.T @ (weights * problem.sign * probability)
        shrunk = np.sign(smooth) * np.maximum(np.abs(smooth) - lasso, 0.0)
        steepest = np.where(theta != 0, smooth + lasso * np.sign(theta), shrunk)
        converged = bool(np.max(np.abs(steepest)) <= limit)
        if converged or n_iterations >= MAX_ITERATIONS:
            break
        n_iterations += 1
        movable = (theta != 0) | (steepest != 0)
        movable[0] = True
        free = np.flatnonzero(movable)
        # Single precision is enough for the direction; gradient and objective are in double.
        root = np.sqrt(weights * probability * (1.0 - probability)).astype(np.float32)[:, None]
        root = root * (narrow if len(free) == n_neurons + 1 else narrow[:, free])
        hessian = (root.T @ root).astype(np.float64)
        hessian[np.diag_indices(len(free))] += ridge[free] + 1e-6 * (1e-3 * weights.sum() + 1.0)
        step = np.zeros_like(theta)
        step[free] = -scipy.linalg.solve(hessian, steepest[free], assume_a="pos", check_finite=False)
        orthant = np.where(theta != 0, np.sign(theta), -np.sign(steepest))
        better = problem.search(point, step, orthant, steepest) or problem.proximal_step(point, smooth)
        if better is None:
            break
        point = better
    beta = point.theta[1:]
    coef = beta * data.scale
    return LogisticFit(
        coef=coef,
        intercept=float(point.theta[0] - np.dot(coef, data.mean)),
        coef_scaled=beta,
        objective=point.value,
        converged=converged,
        n_iterations=n_iterations,
    )
