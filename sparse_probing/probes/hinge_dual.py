"""The hinge-loss dual of a sparse probe: a box QP of low rank, solved by an interior point in plain NumPy.

Here live the relaxation's solver and the bounds that follow from a dual point. Nothing here knows of branching, of
time limits, or of Gurobi.

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
    m, n = Z.shape
    if m - n_fixed <= k_free:  # every neuron fits: nothing is left to share out
        n_fixed, k_free = m, 0
    free = slice(n_fixed, m)
    m_free = m - n_fixed
    half = 0.5 * gamma
    u = repair(0.5 * w, y, w)
    b, theta = 0.0, 0.0
    low, high = np.ones(n), np.ones(n)  # multipliers of u ≥ 0 and of u ≤ w
    g = Z @ u
    s = np.ones(m)
    s[free] = k_free / max(m_free, 1)
    scale = max(1e-9, half * float((g * g).max(initial=0.0)))
    s_low, s_high = np.full(m_free, scale), np.full(m_free, scale)  # multipliers of s ≥ 0 and of s ≤ 1
    best: tuple[float, Array] = (-np.inf, u)
    value, best_s, best_b = np.inf, s, b
    step = 0
    for step in range(MAX_STEPS + 1):
        sf, gf, room, room_s = s[free], g[free], w - u, 1.0 - s[free]
        squares = g * g
        slack = 1.0 - (gamma * s * g) @ Z - b * y
        bound = float(u.sum()) - half * (float(squares[:n_fixed].sum()) + top_sum(squares[free], k_free))
        primal = half * float(s @ squares) + float(w @ np.maximum(0.0, slack))
        if bound > best[0]:
            best = (bound, u)
        if primal < value:
            value, best_s, best_b = primal, s, b
        if value - best[0] <= tolerance * abs(value) or best[0] > cutoff or step == MAX_STEPS:
            break
        r_u = slack + low - high
        r_s = half * squares[free] - theta + s_low - s_high
        r_k = k_free - float(sf.sum())
        r_y = -float(y @ u)
        # Eliminating the multipliers and s leaves  (D + Z'CZ) du = …,  D and C diagonal.
        d_inv = 1.0 / (low / u + high / room)
        e_inv = 1.0 / (s_low / sf + s_high / room_s)
        a = np.zeros(m)
        a[free] = gamma * gf * e_inv
        c = gamma * s
        c[free] += gamma * gf * a[free]
        c = np.maximum(c, 1e-300)
        root = np.sqrt(c)
        scaled = Z * np.sqrt(d_inv)
        G = scaled @ scaled.T
        factor, failed = dpotrf(G * root * root[:, None] + np.eye(m), lower=1)
        if failed:
            break
        use_q = a[free] * gf > sf  # where s moves much more than g does, its step is read off q
        d_y = d_inv * y
        p_y = Z @ d_y
        yy = float(y @ d_y)

        def reduced(p: Array, h: Array) -> tuple[Array, Array, Array]:
            """Solve q = γ(s dg + g ds), dg = p − G q, ds = (h + γ g dg)/E for q, dg, ds. p: (m,), h: (m_free,)."""
            ah = np.zeros(m)
            ah[free] = a[free] * h
            q = root * dpotrs(factor, root * p + ah / root, lower=1)[0]
            dg = np.where(c * G.diagonal() > 1.0, (q - ah) / c, p - G @ q)
            with np.errstate(divide="ignore", invalid="ignore"):
                ds = np.where(use_q, (q[free] / gamma - sf * dg[free]) / gf, e_inv * (h + gamma * gf * dg[free]))
            return q, dg, ds

        q_y, dg_y, ds_y = reduced(p_y, np.zeros(m_free))
        q_t, dg_t, ds_t = reduced(np.zeros(m), np.ones(m_free))
        a11, a12 = yy - float(p_y @ q_y), -float(p_y @ q_t)
        a21, a22 = float(ds_y.sum()), (float(ds_t.sum()) if m_free else 1.0)

        def direction(t_low: Array, t_high: Array, v_low: Array, v_high: Array, bend: Array, bend_s: Array) -> _Step:
            """Newton step towards products t (of u) and v (of s), with the second-order terms given."""
            rhs = r_u + t_low / u - t_high / room
            d_r = d_inv * rhs
            q_r, dg_r, ds_r = reduced(Z @ d_r - G @ bend, r_s + bend_s + v_low / sf - v_high / room_s)
            b1 = float(y @ d_r) - float(p_y @ (q_r + bend)) - r_y
            b2 = float(ds_r.sum()) - r_k if m_free else 0.0
            det = a11 * a22 - a12 * a21
            db, dth = (b1 * a22 - a12 * b2) / det, (a11 * b2 - a21 * b1) / det
            q = q_r - db * q_y - dth * q_t + bend
            du = d_r - db * d_y - d_inv * (q @ Z)
            ds = ds_r - db * ds_y - dth * ds_t
            return _Step(
                du=du,
                ds=ds,
                dg=dg_r - db * dg_y - dth * dg_t,
                db=db,
                dth=dth,
                low=(t_low - low * du) / u,
                high=(t_high + high * du) / room,
                s_low=(v_low - s_low * ds) / sf,
                s_high=(v_high + s_high * ds) / room_s,
            )

        products = (u * low, room * high, sf * s_low, room_s * s_high)
        count = 2 * (n + m_free)
        mu = sum(float(p.sum()) for p in products) / count
        t = direction(*(-p for p in products), np.zeros(m), np.zeros(m_free))
        reach = _reach(t, u, room, low, high, sf, room_s, s_low, s_high)
        mu_affine = (
            float((u + reach * t.du) @ (low + reach * t.low))
            + float((room - reach * t.du) @ (high + reach * t.high))
            + float((sf + reach * t.ds) @ (s_low + reach * t.s_low))
            + float((room_s - reach * t.ds) @ (s_high + reach * t.s_high))
        ) / count
        aim = mu * min(1.0, max(mu_affine / mu, 0.0)) ** 3
        bend = np.zeros(m)
        bend[free] = gamma * t.ds * t.dg[free]
        t = direction(
            aim - products[0] - t.du * t.low,
            aim - products[1] + t.du * t.high,
            aim - products[2] - t.ds * t.s_low,
            aim - products[3] + t.ds * t.s_high,
            bend,
            half * t.dg[free] ** 2,
        )
        reach = STEP_BACK * _reach(t, u, room, low, high, sf, room_s, s_low, s_high)
        if not (np.isfinite(reach) and np.isfinite(t.db)) or reach < 1e-6:
            break
        reach = min(1.0, reach)
        u = u + reach * t.du
        s = s.copy()
        s[free] += reach * t.ds
        b += reach * t.db
        theta += reach * t.dth
        low, high = low + reach * t.low, high + reach * t.high
        s_low, s_high = s_low + reach * t.s_low, s_high + reach * t.s_high
        g = Z @ u
    u = repair(best[1], y, w)
    g = Z @ u
    squares = g * g
    bound = float(u.sum()) - half * (float(squares[:n_fixed].sum()) + top_sum(squares[free], k_free))
    return Relaxation(u, best_s, g, best_b, bound, value, step)


@dataclass(frozen=True)
class _Step:
    du: Array
    ds: Array
    dg: Array
    db: float
    dth: float
    low: Array
    high: Array
    s_low: Array
    s_high: Array


def _reach(
    t: _Step, u: Array, room: Array, low: Array, high: Array, sf: Array, room_s: Array, s_low: Array, s_high: Array
) -> float:
    """The largest step (at most 1 / STEP_BACK) that keeps u, w − u, s, 1 − s and the multipliers positive."""
    worst = max(
        STEP_BACK,
        float((-t.du / u).max()),
        float((t.du / room).max()),
        float((-t.low / low).max()),
        float((-t.high / high).max()),
        float((-t.ds / sf).max(initial=0.0)),
        float((t.ds / room_s).max(initial=0.0)),
        float((-t.s_low / s_low).max(initial=0.0)),
        float((-t.s_high / s_high).max(initial=0.0)),
    )
    return 1.0 / worst


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
        self.Z = np.ascontiguousarray(X.T) * y
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
        return solve_relaxation(
            Z, self.y, self.w, self.gamma, n_fixed=neurons.size, k_free=0, tolerance=tolerance
        ).u

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
