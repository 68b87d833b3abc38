"""The dual of a sparse ridge regression: no constraint on the dual point, and Gram matrices in place of samples.

The counterpart of ``hinge_dual`` for real-valued targets; ``cuts``, ``incumbents`` and ``tree`` work on either. Rows of
``Z`` are centred neurons; for a dual point (a residual) ``u`` write ``g_j = Σ_i u_i Z[j, i]``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.optimal.interior_point import Array, Relaxation, top_sum

MAX_STEPS = 60
CENTRING = 0.15
STEP_BACK = 0.95


class SquaredProblem:
    """``½ Σ (y − xᵀβ − b)² + ‖β‖²/(2γ)`` on a set of neurons.

    Parameters
    ----------
    X:
        (n_samples, n_neurons) activations.
    y:
        (n_samples,) targets.
    gamma:
        Inverse ridge penalty.
    """

    def __init__(self, X: Array, y: Array, gamma: float) -> None:
        self.means = X.mean(axis=0)
        self.Z = np.ascontiguousarray(X.T) - self.means[:, None]
        self.mean = float(y.mean())
        self.y, self.gamma = y - self.mean, gamma

    @property
    def n_neurons(self) -> int:
        return int(self.Z.shape[0])

    def restrict(self, keep: NDArray[np.intp]) -> SquaredProblem:
        """The same problem over some of the neurons."""
        part = object.__new__(SquaredProblem)
        part.Z, part.means = self.Z[keep], self.means[keep]
        part.y, part.mean, part.gamma = self.y, self.mean, self.gamma
        return part

    def middle(self) -> Array:
        return self.y

    def base(self, u: Array) -> float:
        return float(self.y @ u) - 0.5 * float(u @ u)

    def gains(self, u: Array, neurons: NDArray[np.intp] | None = None) -> Array:
        g = (self.Z if neurons is None else self.Z[neurons]) @ u
        gains: Array = 0.5 * self.gamma * g * g
        return gains

    def dual_at(self, neurons: NDArray[np.intp], shares: Array, *, tolerance: float) -> Array:
        """The best dual point for fixed shares, in closed form."""
        Z = self.Z[neurons]
        _, beta, _ = _solve_at(Z @ Z.T, Z @ self.y, shares, self.gamma)
        u: Array = self.y - beta @ Z
        return u

    def relax(
        self,
        fixed: NDArray[np.intp],
        free: NDArray[np.intp],
        k_free: int,
        *,
        tolerance: float,
        cutoff: float = np.inf,
    ) -> Relaxation:
        """Relaxation with ``fixed`` in and ``k_free`` of ``free``, by Newton steps on the shares alone."""
        Z = self.Z[np.concatenate([fixed, free])]
        s, steps = _shares(Z @ Z.T, Z @ self.y, self.y, self.gamma, fixed.size, k_free, tolerance, cutoff)
        _, beta, _ = _solve_at(Z @ Z.T, Z @ self.y, s, self.gamma)
        u = self.y - beta @ Z
        g = Z @ u
        gains = 0.5 * self.gamma * g * g
        k_inside = min(k_free, free.size)
        bound = self.base(u) - float(gains[: fixed.size].sum()) - top_sum(gains[fixed.size :], k_inside)
        value = 0.5 * float(u @ u) + 0.5 * float((beta * beta / np.maximum(s, 1e-300)).sum()) / self.gamma
        return Relaxation(u, s, g, self.mean, bound, value, steps)

    def finish(self, support: NDArray[np.intp], tolerance: float) -> tuple[Array, float, float]:
        """Coefficients, intercept and objective on a support."""
        Z = self.Z[support]
        _, beta, _ = _solve_at(Z @ Z.T, Z @ self.y, np.ones(support.size), self.gamma)
        residual = self.y - beta @ Z
        objective = 0.5 * float(residual @ residual) + float(beta @ beta) / (2.0 * self.gamma)
        return beta, self.mean - float(self.means[support] @ beta), objective


def _solve_at(A: Array, h: Array, s: Array, gamma: float) -> tuple[Array, Array, Array]:
    """g, β = γ s g and ``Z K⁻¹ Zᵀ`` at shares s, where ``K = I + γ Zᵀ S Z``, ``A = Z Zᵀ`` and ``h = Z y``."""
    root = np.sqrt(gamma * s)
    M = np.eye(s.size) + A * np.outer(root, root)
    inner = np.linalg.solve(M, np.column_stack([root * h, root[:, None] * A]))
    beta = root * inner[:, 0]
    return h - A @ beta, beta, A - (A * root) @ inner[:, 1:]


def _shares(
    A: Array, h: Array, y: Array, gamma: float, n_fixed: int, k_free: int, tolerance: float, cutoff: float
) -> tuple[Array, int]:
    """Minimise ``½ yᵀ (I + γ Zᵀ S Z)⁻¹ y`` over the shares, convex, by a primal-dual interior point."""
    m = h.size
    s = np.ones(m)
    m_free = m - n_fixed
    if m_free <= k_free or k_free == 0:
        s[n_fixed:] = 1.0 if k_free else 0.0
        return s, 0
    free = slice(n_fixed, m)
    s[free] = k_free / m_free
    half, total = 0.5 * gamma, float(y @ y)
    g, beta, inner = _solve_at(A, h, s, gamma)
    scale = max(1e-12 * max(total, 1e-300), half * float((g * g).max()))
    low, high, theta = np.full(m_free, scale), np.full(m_free, scale), 0.0
    best_value, best_s, best_bound, step = np.inf, s, -np.inf, 0
    for step in range(MAX_STEPS + 1):
        sf, gf = s[free], g[free]
        gains = half * g * g
        value = 0.5 * (total - float(h @ beta))
        # base(u) at u = y − Zᵀβ, from Gram matrices alone
        base = 0.5 * total - 0.5 * float(beta @ A @ beta)
        best_bound = max(best_bound, base - float(gains[:n_fixed].sum()) - top_sum(gains[free], k_free))
        if value < best_value:
            best_value, best_s = value, s
        if best_value - best_bound <= tolerance * abs(best_value) or best_bound > cutoff or step == MAX_STEPS:
            break
        mu = CENTRING * (float(sf @ low) + float((1 - sf) @ high)) / (2 * m_free)
        H = gamma * gamma * inner[free, free] * np.outer(gf, gf)
        H.flat[:: m_free + 1] += low / sf + high / (1 - sf)
        rhs = gains[free] - theta + mu / sf - mu / (1 - sf)
        solved = np.linalg.solve(H, np.column_stack([rhs, np.ones(m_free)]))
        dth = (float(solved[:, 0].sum()) - (k_free - float(sf.sum()))) / float(solved[:, 1].sum())
        ds = solved[:, 0] - dth * solved[:, 1]
        d_low = mu / sf - low - low / sf * ds
        d_high = mu / (1 - sf) - high + high / (1 - sf) * ds
        worst = max(
            STEP_BACK,
            float((-ds / sf).max()),
            float((ds / (1 - sf)).max()),
            float((-d_low / low).max()),
            float((-d_high / high).max()),
        )
        reach = STEP_BACK / worst
        if not np.isfinite(reach) or reach < 1e-9:
            break
        s = s.copy()
        s[free] += reach * ds
        low, high, theta = low + reach * d_low, high + reach * d_high, theta + reach * dth
        g, beta, inner = _solve_at(A, h, s, gamma)
    return best_s, step
