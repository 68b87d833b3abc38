"""An interior point for the hinge-loss dual of a sparse probe: a box QP of low rank, in plain NumPy.

This module has the relaxation's solver and the repair of a dual point. Branching, time limits and Gurobi are elsewhere.

Rows of ``Z`` are neurons: ``Z[j, i] = y_i x_ij``. For a dual point ``u`` write ``g_j = Σ_i u_i Z[j, i]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs

Array = NDArray[np.float64]

MAX_STEPS = 60
STEP_BACK = 0.995  # the share of the way to the boundary that a step may go


@dataclass(frozen=True)
class Relaxation:
    """A solved relaxation.

    Attributes
    ----------
    u:
        (n_samples,) dual point, feasible up to rounding: ``0 ≤ u ≤ w`` and ``Σ y u = 0``.
    s:
        (m,) share of each neuron, the fixed ones first.
    g:
        (m,) ``Z @ u``.
    b:
        Intercept.
    bound:
        Dual value at ``u``: a lower bound whatever the accuracy of the solution.
    value:
        Primal value at ``s``: an upper bound on the *relaxation*; of the problem itself if ``s`` is 0/1.
    steps:
        Interior-point steps taken.
    """

    u: Array
    s: Array
    g: Array
    b: float
    bound: float
    value: float
    steps: int


def top_sum(values: Array, k: int) -> float:
    """Sum of the k largest values (all of them, if there are fewer)."""
    if k <= 0:
        return 0.0
    if k >= values.size:
        return float(values.sum())
    return float(np.partition(values, values.size - k)[values.size - k :].sum())


def repair(u: Array, y: Array, w: Array) -> Array:
    """The nearest feasible dual point below ``u``: clipped to the box, the heavier class scaled down."""
    u = np.clip(u, 0.0, w)
    positive = y > 0
    plus, minus = float(u[positive].sum()), float(u[~positive].sum())
    if plus > minus:
        u[positive] *= minus / plus
    elif minus > plus:
        u[~positive] *= plus / minus
    return u


def solve_relaxation(
    Z: Array,
    y: Array,
    w: Array,
    gamma: float,
    *,
    n_fixed: int,
    k_free: int,
    tolerance: float = 1e-6,
    cutoff: float = np.inf,
) -> Relaxation:
    """Minimise over s, maximise over u, of ``Σ u − (γ/2) Σ_j s_j g_j(u)²``.

    The first ``n_fixed`` neurons have ``s = 1``; the others share ``k_free`` within ``0 ≤ s ≤ 1``. With ``k_free = 0``
    this is the probe on a given support. ``s`` and ``u`` take Newton steps together: eliminating s leaves a diagonal
    plus a matrix of rank m, so a step costs ``O(n_samples m²)``.

    Parameters
    ----------
    Z:
        (m, n_samples), fixed neurons first.
    y, w:
        (n_samples,) labels ±1 and the weights of the samples.
    gamma:
        Inverse ridge penalty: the primal is ``‖β‖²/(2γ) + Σ w max(0, 1 − y(xβ + b))``.
    tolerance:
        Relative gap between ``value`` and ``bound`` at which to stop.
    cutoff:
        Stop as soon as the bound exceeds this.

    Source: primal-dual predictor-corrector (Mehrotra 1992); the relaxation is that of Bertsimas, Pauphilet and
    Van Parys (2021), section 3.
    """
    m = Z.shape[0]
    if m - n_fixed <= k_free:  # every neuron fits: nothing is left to share out
        n_fixed, k_free = m, 0
    at = _Iterate.start(Z, y, w, gamma, n_fixed, k_free)
    best_bound, best_u = -np.inf, at.u
    value, best_s, best_b = np.inf, at.s, at.b
    step = 0
    for step in range(MAX_STEPS + 1):
        squares = at.g * at.g
        slack = 1.0 - (gamma * at.s * at.g) @ Z - at.b * y
        bound = float(at.u.sum()) - 0.5 * gamma * _cost(squares, n_fixed, k_free)
        primal = 0.5 * gamma * float(at.s @ squares) + float(w @ np.maximum(0.0, slack))
        if bound > best_bound:
            best_bound, best_u = bound, at.u
        if primal < value:
            value, best_s, best_b = primal, at.s, at.b
        if value - best_bound <= tolerance * abs(value) or best_bound > cutoff or step == MAX_STEPS:
            break
        # At the end of its precision the system turns singular: the best point so far stands.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = _Newton.factor(Z, y, w, gamma, n_fixed, k_free, at, slack)
            moved = None if newton is None else newton.step(at)
        if moved is None:
            break
        at = moved
    u = repair(best_u, y, w)
    g = Z @ u
    bound = float(u.sum()) - 0.5 * gamma * _cost(g * g, n_fixed, k_free)
    return Relaxation(u, best_s, g, best_b, bound, value, step)


def _cost(squares: Array, n_fixed: int, k_free: int) -> float:
    return float(squares[:n_fixed].sum()) + top_sum(squares[n_fixed:], k_free)


@dataclass(frozen=True)
class _Iterate:
    """Where the interior point stands: u, s and b with the multipliers of all bounds, and of ``Σ s = k_free``.

    s is of all neurons; its multipliers are of the free ones alone.
    """

    u: Array
    s: Array
    g: Array
    b: float
    theta: float
    low: Array  # of u ≥ 0
    high: Array  # of u ≤ w
    s_low: Array  # of s ≥ 0
    s_high: Array  # of s ≤ 1

    @classmethod
    def start(cls, Z: Array, y: Array, w: Array, gamma: float, n_fixed: int, k_free: int) -> _Iterate:
        m, n = Z.shape
        u = repair(0.5 * w, y, w)
        g = Z @ u
        s = np.ones(m)
        s[n_fixed:] = k_free / max(m - n_fixed, 1)
        scale = np.full(m - n_fixed, max(1e-9, 0.5 * gamma * float((g * g).max(initial=0.0))))
        return cls(u, s, g, 0.0, 0.0, np.ones(n), np.ones(n), scale, scale.copy())


@dataclass(frozen=True)
class _Direction:
    du: Array
    ds: Array
    dg: Array
    db: float
    dtheta: float
    low: Array
    high: Array
    s_low: Array
    s_high: Array


@dataclass(frozen=True)
class _Newton:
    """One factored Newton system.

    Eliminating the multipliers and s leaves ``(D + ZᵀCZ) du = …`` with D and C diagonal, which is solved in the m
    unknowns ``q = γ (s dg + g ds)``; where C is large, dg and ds are read off q rather than off ``p − G q``, whose terms
    would cancel.
    """

    Z: Array
    y: Array
    w: Array
    gamma: float
    free: slice
    r_u: Array
    r_s: Array
    r_y: float
    r_k: float
    d_inv: Array
    e_inv: Array
    a: Array
    c: Array
    root: Array
    G: Array
    factored: Array
    by_q: NDArray[np.bool_]
    s_free: Array
    g_free: Array

    @classmethod
    def factor(
        cls, Z: Array, y: Array, w: Array, gamma: float, n_fixed: int, k_free: int, at: _Iterate, slack: Array
    ) -> _Newton | None:
        """The system at an iterate, or None if it cannot be factored."""
        m = at.s.size
        free = slice(n_fixed, m)
        sf, gf = at.s[free], at.g[free]
        d_inv = 1.0 / (at.low / at.u + at.high / (w - at.u))
        e_inv = 1.0 / (at.s_low / sf + at.s_high / (1.0 - sf))
        a = np.zeros(m)
        a[free] = gamma * gf * e_inv
        c = gamma * at.s
        c[free] += gamma * gf * a[free]
        c = np.maximum(c, 1e-300)
        root = np.sqrt(c)
        scaled = Z * np.sqrt(d_inv)
        G = scaled @ scaled.T
        factored, failed = dpotrf(G * root * root[:, None] + np.eye(m), lower=1)
        if failed:
            return None
        return cls(
            Z=Z,
            y=y,
            w=w,
            gamma=gamma,
            free=free,
            r_u=slack + at.low - at.high,
            r_s=0.5 * gamma * gf * gf - at.theta + at.s_low - at.s_high,
            r_y=-float(y @ at.u),
            r_k=k_free - float(sf.sum()),
            d_inv=d_inv,
            e_inv=e_inv,
            a=a,
            c=c,
            root=root,
            G=G,
            factored=factored,
            by_q=a[free] * gf > sf,
            s_free=sf,
            g_free=gf,
        )

    def step(self, at: _Iterate) -> _Iterate | None:
        """Predictor, corrector, and as far that way as the bounds allow; None if no step can be taken."""
        u, u_slack = at.u, self.w - at.u
        s, s_slack = self.s_free, 1.0 - self.s_free
        m = at.s.size
        p_y = self.Z @ (self.d_inv * self.y)
        pieces = (p_y, self._reduced(p_y, np.zeros(s.size)), self._reduced(np.zeros(m), np.ones(s.size)))
        products = (u * at.low, u_slack * at.high, s * at.s_low, s_slack * at.s_high)
        count = 2 * (u.size + s.size)
        mu = sum(float(p.sum()) for p in products) / count
        lows, highs, s_lows, s_highs = products
        t = self._direction(at, pieces, (-lows, -highs, -s_lows, -s_highs), np.zeros(m), np.zeros(s.size))
        reach = self._reach(at, t)
        affine = (
            float((u + reach * t.du) @ (at.low + reach * t.low))
            + float((u_slack - reach * t.du) @ (at.high + reach * t.high))
            + float((s + reach * t.ds) @ (at.s_low + reach * t.s_low))
            + float((s_slack - reach * t.ds) @ (at.s_high + reach * t.s_high))
        ) / count
        aim = mu * min(1.0, max(affine / mu, 0.0)) ** 3
        bend = np.zeros(m)
        bend[self.free] = self.gamma * t.ds * t.dg[self.free]
        targets = (
            aim - lows - t.du * t.low,
            aim - highs + t.du * t.high,
            aim - s_lows - t.ds * t.s_low,
            aim - s_highs + t.ds * t.s_high,
        )
        t = self._direction(at, pieces, targets, bend, 0.5 * self.gamma * t.dg[self.free] ** 2)
        reach = min(1.0, STEP_BACK * self._reach(at, t))
        if not np.isfinite(t.db) or not reach >= 1e-6:
            return None
        moved = at.u + reach * t.du
        shares = at.s.copy()
        shares[self.free] += reach * t.ds
        return _Iterate(
            u=moved,
            s=shares,
            g=self.Z @ moved,
            b=at.b + reach * t.db,
            theta=at.theta + reach * t.dtheta,
            low=at.low + reach * t.low,
            high=at.high + reach * t.high,
            s_low=at.s_low + reach * t.s_low,
            s_high=at.s_high + reach * t.s_high,
        )

    def _reduced(self, p: Array, h: Array) -> tuple[Array, Array, Array]:
        """Solve q = γ(s dg + g ds), dg = p − G q, E ds = h + γ g dg for q, dg, ds. p: (m,), h: (m_free,)."""
        ah = np.zeros(self.a.size)
        ah[self.free] = self.a[self.free] * h
        q = self.root * dpotrs(self.factored, self.root * p + ah / self.root, lower=1)[0]
        dg = np.where(self.c * self.G.diagonal() > 1.0, (q - ah) / self.c, p - self.G @ q)
        slope = dg[self.free]
        read_off = (q[self.free] / self.gamma - self.s_free * slope) / self.g_free
        ds = np.where(self.by_q, read_off, self.e_inv * (h + self.gamma * self.g_free * slope))
        return q, dg, ds

    def _direction(
        self,
        at: _Iterate,
        pieces: tuple[Array, tuple[Array, Array, Array], tuple[Array, Array, Array]],
        targets: tuple[Array, Array, Array, Array],
        bend: Array,
        bend_s: Array,
    ) -> _Direction:
        """Towards the given changes of the complementarity products, with the second-order terms given."""
        p_y, (q_y, dg_y, ds_y), (q_t, dg_t, ds_t) = pieces
        t_low, t_high, v_low, v_high = targets
        u, u_slack, s, s_slack = at.u, self.w - at.u, self.s_free, 1.0 - self.s_free
        d_r = self.d_inv * (self.r_u + t_low / u - t_high / u_slack)
        q_r, dg_r, ds_r = self._reduced(self.Z @ d_r - self.G @ bend, self.r_s + bend_s + v_low / s - v_high / s_slack)
        d_y = self.d_inv * self.y
        # yᵀdu = r_y and Σ ds = r_k, in db and dθ
        a11, a12, b1 = (
            float(self.y @ d_y) - float(p_y @ q_y),
            -float(p_y @ q_t),
            float(self.y @ d_r) - float(p_y @ (q_r + bend)) - self.r_y,
        )
        a21, a22, b2 = float(ds_y.sum()), float(ds_t.sum()), float(ds_r.sum()) - self.r_k
        if not s.size:
            a22, b2 = 1.0, 0.0
        det = a11 * a22 - a12 * a21
        db, dtheta = (b1 * a22 - a12 * b2) / det, (a11 * b2 - a21 * b1) / det
        q = q_r - db * q_y - dtheta * q_t + bend
        du = d_r - db * d_y - self.d_inv * (q @ self.Z)
        ds = ds_r - db * ds_y - dtheta * ds_t
        return _Direction(
            du=du,
            ds=ds,
            dg=dg_r - db * dg_y - dtheta * dg_t,
            db=db,
            dtheta=dtheta,
            low=(t_low - at.low * du) / u,
            high=(t_high + at.high * du) / u_slack,
            s_low=(v_low - at.s_low * ds) / s,
            s_high=(v_high + at.s_high * ds) / s_slack,
        )

    def _reach(self, at: _Iterate, t: _Direction) -> float:
        """The largest step (at most 1 / STEP_BACK) that keeps u, w − u, s, 1 − s and the multipliers positive."""
        worst = max(
            STEP_BACK,
            float((-t.du / at.u).max()),
            float((t.du / (self.w - at.u)).max()),
            float((-t.low / at.low).max()),
            float((-t.high / at.high).max()),
            float((-t.ds / self.s_free).max(initial=0.0)),
            float((t.ds / (1.0 - self.s_free)).max(initial=0.0)),
            float((-t.s_low / at.s_low).max(initial=0.0)),
            float((-t.s_high / at.s_high).max(initial=0.0)),
        )
        return 1.0 / worst
