"""The weighted hinge loss as a problem that cuts, local search and branch and bound can work on.

The arithmetic is in ``interior_point``; the counterpart for real-valued targets is ``squared_dual``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.optimal.interior_point import Array, Relaxation, repair, solve_relaxation


class HingeProblem:
    """Weighted hinge loss with ridge on a set of neurons.

    Parameters
    ----------
    X:
        (n_samples, n_neurons) activations.
    y:
        (n_samples,) labels ±1, both present.
    w:
        (n_samples,) positive weights.
    gamma:
        Inverse ridge penalty.
    """

    def __init__(self, X: Array, y: Array, w: Array, gamma: float) -> None:
        # One copy, since X may hold a whole layer.
        self.Z = np.array(X.T, dtype=np.float64, order="C")
        self.Z *= y
        self.y, self.w, self.gamma = y, w, gamma

    @property
    def n_neurons(self) -> int:
        return int(self.Z.shape[0])

    def restrict(self, keep: NDArray[np.intp]) -> HingeProblem:
        """The same problem over some of the neurons."""
        part = object.__new__(HingeProblem)
        part.Z, part.y, part.w, part.gamma = self.Z[keep], self.y, self.w, self.gamma
        return part

    def middle(self) -> Array:
        return repair(0.5 * self.w, self.y, self.w)

    def base(self, u: Array) -> float:
        return float(u.sum())

    def gains(self, u: Array, neurons: NDArray[np.intp] | None = None) -> Array:
        g = (self.Z if neurons is None else self.Z[neurons]) @ u
        return 0.5 * self.gamma * g * g

    def relax(
        self,
        fixed: NDArray[np.intp],
        free: NDArray[np.intp],
        k_free: int,
        *,
        tolerance: float,
        cutoff: float = np.inf,
    ) -> Relaxation:
        """Relaxation with ``fixed`` in and ``k_free`` of ``free``; s and g come in that order."""
        return solve_relaxation(
            self.Z[np.concatenate([fixed, free])],
            self.y,
            self.w,
            self.gamma,
            n_fixed=fixed.size,
            k_free=k_free,
            tolerance=tolerance,
            cutoff=cutoff,
        )

    def dual_at(self, neurons: NDArray[np.intp], shares: Array, *, tolerance: float) -> Array:
        """A feasible dual point that is best for fixed fractional shares: columns scaled by their roots."""
        Z = self.Z[neurons] * np.sqrt(shares)[:, None]
        return solve_relaxation(Z, self.y, self.w, self.gamma, n_fixed=neurons.size, k_free=0, tolerance=tolerance).u

    def finish(self, support: NDArray[np.intp], tolerance: float) -> tuple[Array, float, float]:
        """Coefficients, intercept and objective on a support, the intercept exact for those coefficients."""
        solved = self.relax(support, support[:0], 0, tolerance=tolerance)
        Z = self.Z[support]
        coef = self.gamma * solved.g
        margins = coef @ Z
        b = _best_intercept(margins * self.y, self.y, self.w)
        loss = float(self.w @ np.maximum(0.0, 1.0 - margins - b * self.y))
        return coef, b, float(coef @ coef) / (2.0 * self.gamma) + loss


def _best_intercept(scores: Array, y: Array, w: Array) -> float:
    """Minimise ``Σ w max(0, 1 − y (scores + b))`` over b: the slope rises by w at each ``y − scores``."""
    kinks = y - scores
    order = np.argsort(kinks, kind="stable")
    slope = np.cumsum(w[order]) - float(w[y > 0].sum())
    flat = 1e-12 * float(w.sum())
    first = int(np.searchsorted(slope, -flat))
    last = int(np.searchsorted(slope, flat, side="right"))
    ends = kinks[order[[min(first, y.size - 1), min(last, y.size - 1)]]]
    return float(ends.mean())
