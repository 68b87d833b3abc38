"""Cuts, bounds and the root relaxation of the cardinality problem ``min over |S| ≤ k of c(S)``.

A cut is a lower bound, from one dual point, on the objective of *every* set of neurons. This module has the pool of cuts,
the fixing of neurons that follows from it, and the root phase, for any loss with the :class:`Problem` interface. It has no
search and no solver of integer programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.optimal.interior_point import Array, Relaxation, top_sum

Index = NDArray[np.intp]

# Cuts are lowered by this share of their terms' size, which covers the rounding of sums over samples.
ROUNDING = 1e-11
PRICED_PER_ROUND = 40
ROUNDS = 40


class Problem(Protocol):
    """A loss whose value on a set of neurons is ``c(s) = max over u of base(u) − Σ_j s_j (γ/2) g_j(u)²``."""

    gamma: float

    @property
    def n_neurons(self) -> int: ...

    def relax(self, fixed: Index, free: Index, k_free: int, *, tolerance: float, cutoff: float = ...) -> Relaxation: ...

    def dual_at(self, neurons: Index, shares: Array, *, tolerance: float) -> Array:
        """A feasible dual point that is best for fixed shares of these neurons."""
        ...

    def gains(self, u: Array, neurons: Index | None = None) -> Array:
        """``(γ/2) g_j(u)²`` for the given neurons (all of them by default)."""
        ...

    def base(self, u: Array) -> float:
        """The part of the dual value that no neuron enters."""
        ...

    def middle(self) -> Array:
        """A feasible dual point to start from."""
        ...

    def restrict(self, keep: Index) -> Problem:
        """The same problem over some of the neurons."""
        ...

    def finish(self, support: Index, tolerance: float) -> tuple[Array, float, float]:
        """Coefficients, intercept and objective on a support."""
        ...


@dataclass(frozen=True)
class Cut:
    """``c(s) ≥ base − gains @ s`` for every s in [0, 1]^n_neurons."""

    base: float
    gains: Array

    def bound(self, k: int) -> float:
        """The least value the cut allows to any k neurons."""
        return self.base - top_sum(self.gains, k)


def make_cut(problem: Problem, u: Array, neurons: Index | None = None) -> Cut:
    """The cut of a feasible dual point, lowered by what rounding may have added."""
    gains = problem.gains(u, neurons)
    base = problem.base(u)
    size = abs(base) + float(np.abs(u).sum())
    return Cut(base - ROUNDING * size, gains * (1.0 + ROUNDING))


@dataclass
class Pool:
    """Cuts over the same neurons; past ``limit`` the oldest go. ``added`` counts all that ever came."""

    limit: int = 400
    cuts: list[Cut] = field(default_factory=list)
    added: int = 0

    def add(self, cut: Cut) -> None:
        self.added += 1
        self.cuts.append(cut)
        if len(self.cuts) > self.limit:
            del self.cuts[0]


def fix(cuts: list[Cut], k: int, threshold: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Neurons that no solution below ``threshold`` can hold, and those that each such solution must hold.

    With the k largest gains g₍₁₎ ≥ … ≥ g₍ₖ₎ of a cut of value v, forcing neuron j in costs at least
    ``v + g₍ₖ₎ − g_j``; leaving a top neuron out, ``v + g_j − g₍ₖ₊₁₎``.

    Returns
    -------
    out, must: (n_neurons,) masks.
    """
    size = cuts[0].gains.size
    out = np.zeros(size, dtype=bool)
    must = np.zeros(size, dtype=bool)
    if k >= size:
        return out, must
    for cut in cuts:
        part = np.partition(cut.gains, [size - k - 1, size - k])
        next_best, last = part[size - k - 1], part[size - k]
        value = cut.base - float(part[size - k :].sum())
        out |= (value + last - cut.gains >= threshold) & (cut.gains < last)
        must |= (value + cut.gains - next_best >= threshold) & (cut.gains >= last)
    return out, must


@dataclass(frozen=True)
class Solved:
    """A relaxation in which ``fixed`` neurons are in and ``k_free`` of ``free`` are shared out.

    Attributes
    ----------
    bound:
        Lower bound on every such choice.
    shares, gains:
        (n_free,) s of the relaxation and gains of its dual point.
    cut:
        The cut of that dual point, over all neurons of the problem.
    rounds:
        Rounds of pricing.
    """

    bound: float
    shares: Array
    gains: Array
    cut: Cut
    rounds: int


def solve_by_columns(
    problem: Problem,
    fixed: Index,
    free: Index,
    k_free: int,
    likely: Array,
    *,
    tolerance: float,
    cutoff: float = np.inf,
    on_cut: Callable[[Cut], None] | None = None,
    keep_going: Callable[[], bool] = lambda: True,
) -> Solved:
    """Solve a relaxation on a working set of neurons; the dual point prices all others, and those that pay join.

    Parameters
    ----------
    likely:
        (n_free,) the higher, the sooner in the working set.
    cutoff:
        Stop as soon as the bound exceeds this.

    The bound is over *all* of ``free`` from the first round on; more rounds only sharpen it.
    """
    work = np.sort(np.argsort(-likely, kind="stable")[: 2 * k_free + 16])
    shares, best, best_bound, rounds = np.zeros(free.size), None, -np.inf, 0
    for rounds in range(1, ROUNDS + 1):  # noqa: B007
        relaxed = problem.relax(fixed, free[work], k_free, tolerance=tolerance, cutoff=cutoff)
        cut = make_cut(problem, relaxed.u)
        if on_cut is not None:
            on_cut(cut)
        gains = cut.gains[free]
        bound = cut.base - float(cut.gains[fixed].sum()) - top_sum(gains, k_free)
        if best is None or bound > best_bound:
            best, best_bound = cut, bound
        shares = np.zeros(free.size)
        shares[work] = relaxed.s[fixed.size :]
        if best_bound > cutoff or relaxed.value - best_bound <= 3 * tolerance * abs(relaxed.value) or not keep_going():
            break
        inside = gains[work]
        level = float(np.partition(inside, inside.size - k_free)[inside.size - k_free]) if k_free < inside.size else 0.0
        outside = np.setdiff1d(np.flatnonzero(gains > level * (1 - 1e-3)), work, assume_unique=True)
        if not outside.size:
            break
        entering = outside[np.argsort(-gains[outside], kind="stable")[:PRICED_PER_ROUND]]
        work = np.union1d(work[(shares[work] > 1e-4) | (inside > 0.5 * level)], entering)
    assert best is not None  # there is always a first round
    return Solved(best_bound, shares, best.gains[free], best, rounds)
