"""Balanced L2-regularised logistic regression on a handful to some thousands of neurons, by Newton's method.

Objective, in scikit-learn's convention: ½‖β‖² + c Σ w_i log(1 + exp(−y_i (α + z_iᵀβ))), w_i = n / (2 n_class), with z
the activations less their training mean, over ten times their training standard deviation. Where there are more neurons
than samples the same problem is solved in the span of the samples (the representer theorem), which is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from sparse_probing.probes.labelling import Labels, as_positive

Floats = NDArray[np.float64]
# Past this rank a Hessian costs more than the products that an inexact Newton step takes.
MAX_EXACT_RANK = 300
MAX_CG_STEPS = 250
MAX_ITERATIONS = 100


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """Coefficients in units of activation, with the state of the optimisation.

    Attributes
    ----------
    coef, intercept:
        (n_neurons,) and scalar: log-odds = intercept + X @ coef.
    coef_scaled:
        (n_neurons,) per ten training standard deviations.
    objective:
        Value of the objective above.
    converged, n_iterations:
        Whether no score would move by more than the tolerance in a further Newton step, and the steps taken.
    """

    coef: Floats
    intercept: float
    coef_scaled: Floats
    objective: float
    converged: bool
    n_iterations: int

    def scores(self, X: Floats) -> Floats:
        """(n_samples,) log-odds."""
        scores: Floats = X @ self.coef + self.intercept
        return scores


def balanced_weights(positive: NDArray[np.bool_]) -> Floats:
    """(n_samples,) n / (2 n_class): both classes weigh the same, and the mean weight is 1."""
    n, n_positive = len(positive), int(positive.sum())
    return np.where(positive, 0.5 * n / max(n_positive, 1), 0.5 * n / max(n - n_positive, 1))


@dataclass(frozen=True, eq=False)
class Scaled:
    """Training activations less their mean over ten standard deviations, in a basis of at most n_samples columns.

    Attributes
    ----------
    Z:
        (n_samples, rank) coordinates; `basis` (n_neurons, rank) turns them back, None for the neurons themselves.
    mean, scale:
        (n_neurons,); scale is 0 for constant neurons.
    """

    Z: Floats
    basis: Floats | None
    mean: Floats
    scale: Floats


# Every probe regularises coefficients of activations in units of so many standard deviations, as Gurnee et al. (2023) do.
UNIT_STANDARD_DEVIATIONS = 10.0


def plain_scaled(X: Floats) -> Scaled:
    """Standardise (n_samples, n_neurons) training activations: less their mean, over ten standard deviations."""
    mean, std = X.mean(axis=0), X.std(axis=0)
    # A constant column has a standard deviation of rounding errors at most.
    scale = np.divide(
        1.0 / UNIT_STANDARD_DEVIATIONS, std, out=np.zeros_like(std), where=std > 1e-12 * (np.abs(mean) + 1e-300)
    )
    Z = X - mean
    Z *= scale
    return Scaled(Z, None, mean, scale)


def scale_activations(X: Floats) -> Scaled:
    """`plain_scaled`, in a basis of the samples' span where there are more neurons than samples."""
    plain = plain_scaled(X)
    if X.shape[1] <= X.shape[0]:
        return plain
    values, vectors = scipy.linalg.eigh(plain.Z @ plain.Z.T, check_finite=False)
    kept = values > values[-1] * 1e-13 if values[-1] > 0 else np.zeros(len(values), bool)
    root = np.sqrt(values[kept])
    return Scaled(vectors[:, kept] * root, plain.Z.T @ (vectors[:, kept] / root), plain.mean, plain.scale)


def fit_logistic(
    X: Floats,
    positive: Labels,
    *,
    c: float = 1.0,
    tolerance: float = 1e-6,
    start: Floats | None = None,
    scaled: Scaled | None = None,
) -> LogisticFit:
    """Fit one regression.

    Parameters
    ----------
    X:
        (n_samples, n_neurons) training activations.
    positive:
        (n_samples,) labels of two classes, both present: booleans, 0 and 1, or -1 and +1.
    c:
        Inverse regularisation.
    tolerance:
        Largest movement of a training score in the last Newton step; the error left is of the order of its square.
    start:
        (n_neurons,) scaled coefficients to start from; ignored in the span of the samples.
    scaled:
        `scale_activations(X)`, to share it between fits.
    """
    data = scaled or scale_activations(X)
    positive = as_positive(positive)
    weights = c * balanced_weights(positive)
    sign = np.where(positive, 1.0, -1.0)
    rank = data.Z.shape[1]
    design = np.concatenate([np.ones((len(sign), 1)), data.Z], axis=1)
    ridge = np.ones(rank + 1)
    ridge[0] = 0.0
    theta = np.zeros(rank + 1)
    if start is not None and data.basis is None:
        theta[1:] = start
    margin = sign * (design @ theta)

    def value(at: Floats, margins: Floats) -> float:
        return float(0.5 * np.dot(at[1:], at[1:]) + np.dot(weights, np.logaddexp(0.0, -margins)))

    current = value(theta, margin)
    converged = False
    iteration = 0
    while iteration < MAX_ITERATIONS:
        iteration += 1
        probability = 1.0 / (1.0 + np.exp(np.clip(margin, -700, 700)))
        gradient = ridge * theta - design.T @ (weights * sign * probability)
        curvature = weights * probability * (1.0 - probability)
        lift = ridge.copy()
        lift[0] += 1e-12 * weights.sum()
        if rank > MAX_EXACT_RANK:
            step = -_conjugate_gradients(design, curvature, lift, gradient)
        else:
            root = design * np.sqrt(curvature)[:, None]
            hessian = root.T @ root
            hessian[np.diag_indices(rank + 1)] += lift
            step = -scipy.linalg.solve(hessian, gradient, assume_a="pos", check_finite=False)
        movement = sign * (design @ step)
        slope = float(np.dot(gradient, step))
        length = 1.0
        # Newton's decrement bounds the gain; below rounding there is nothing left to search along.
        while length > 1e-8:
            trial = value(theta + length * step, margin + length * movement)
            if trial <= current + 1e-4 * length * slope + 1e-12 * abs(current):
                break
            length *= 0.5
        theta = theta + length * step
        margin = margin + length * movement
        current = value(theta, margin)
        if length == 1.0 and np.max(np.abs(movement)) <= tolerance:
            converged = True
            break
    beta = theta[1:] if data.basis is None else data.basis @ theta[1:]
    coef = beta * data.scale
    return LogisticFit(
        coef=coef,
        intercept=float(theta[0] - np.dot(coef, data.mean)),
        coef_scaled=beta,
        objective=current,
        converged=converged,
        n_iterations=iteration,
    )


def _conjugate_gradients(design: Floats, curvature: Floats, ridge: Floats, gradient: Floats) -> Floats:
    """Solve (design' diag(curvature) design + diag(ridge)) x = gradient to a share of the gradient (truncated Newton).

    The share falls with the gradient, so that convergence stays faster than linear (Nocedal, Wright 2006, section 7.1).
    """
    size = float(np.linalg.norm(gradient))
    target = min(0.1, np.sqrt(size) * 1e-1) * size
    diagonal = np.einsum("ij,i,ij->j", design, curvature, design) + ridge
    x = np.zeros_like(gradient)
    residual = gradient.copy()
    z = residual / diagonal
    direction = z.copy()
    inner = float(residual @ z)
    for _ in range(MAX_CG_STEPS):
        if np.linalg.norm(residual) <= target:
            break
        image = design.T @ (curvature * (design @ direction)) + ridge * direction
        length = inner / float(direction @ image)
        x += length * direction
        residual -= length * image
        z = residual / diagonal
        previous, inner = inner, float(residual @ z)
        direction = z + (inner / previous) * direction
    return x
