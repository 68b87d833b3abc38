"""Local search for good supports: exchanges of neurons guided by the cut of the current support.

Local search proves nothing; it passes the cut of every support that it tries to the caller, whose bounds use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from sparse_probing.probes.optimal.cuts import Cut, Index, Problem, make_cut
from sparse_probing.probes.optimal.interior_point import Array

Support = tuple[int, ...]


@dataclass
class Incumbent:
    """The best support so far, and a memory of all that were tried.

    ``offer`` solves the probe on a support once; ``on_cut`` receives the cut that comes with it.
    """

    problem: Problem
    k: int
    tolerance: float
    on_cut: Callable[[Cut], None] | None = None
    value: float = np.inf
    support: Support = ()
    tried: dict[Support, tuple[float, Array, float]] = field(default_factory=dict)

    def offer(self, neurons: Iterable[int]) -> tuple[float, Array, float]:
        """Value, dual point and lower bound of the probe on a support (at most k distinct neurons)."""
        support = tuple(sorted({int(j) for j in neurons}))
        known = self.tried.get(support)
        if known is not None:
            return known
        chosen = np.array(support, dtype=np.intp)
        solved = self.problem.relax(chosen, chosen[:0], 0, tolerance=self.tolerance)
        self.tried[support] = (solved.value, solved.u, solved.bound)
        if self.on_cut is not None:
            self.on_cut(make_cut(self.problem, solved.u))
        if solved.value < self.value:
            self.value, self.support = solved.value, support
        return self.tried[support]


def improve_by_exchange(
    incumbent: Incumbent, start: Iterable[int], *, trials: int, keep_going: Callable[[], bool]
) -> None:
    """Exchange one neuron at a time until ``trials`` exchanges in a row bring nothing.

    The cut of the support at hand says that putting j in the place of i gains at most ``g_j − g_i``: exchanges are
    tried in that order, and those that cannot gain are never tried.
    """
    support = tuple(sorted({int(j) for j in start}))
    value, u, _ = incumbent.offer(support)
    better = True
    while better and keep_going():
        better = False
        for leaving, entering in _exchanges(incumbent.problem.gains(u), support, trials):
            if not keep_going():
                return
            neighbour = tuple(sorted((set(support) - {leaving}) | {entering}))
            new_value, new_u, _ = incumbent.offer(neighbour)
            if new_value < value * (1 - 1e-9) - 1e-12:
                support, value, u, better = neighbour, new_value, new_u, True
                break


def _exchanges(gains: Array, support: Support, limit: int) -> list[tuple[int, int]]:
    """Pairs (leaving, entering), most promising first."""
    inside = np.array(support, dtype=np.intp)
    outside = np.setdiff1d(np.arange(gains.size), inside)
    if not inside.size or not outside.size:
        return []
    entering = outside[np.argsort(-gains[outside], kind="stable")[:limit]]
    promise = gains[entering][None, :] - gains[inside][:, None]
    order = np.argsort(-promise, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, promise.shape)
    return [(int(inside[i]), int(entering[j])) for i, j in zip(rows, columns, strict=True) if promise[i, j] > 0]


def complete(support: Iterable[int], gains: Array, k: int) -> Index:
    """A support of k neurons: the given ones, filled up by gain or cut down to the largest gains."""
    chosen = np.array(sorted({int(j) for j in support}), dtype=np.intp)
    if chosen.size > k:
        chosen = chosen[np.argsort(-gains[chosen], kind="stable")[:k]]
    elif chosen.size < k:
        others = np.setdiff1d(np.arange(gains.size), chosen)
        chosen = np.concatenate([chosen, others[np.argsort(-gains[others], kind="stable")[: k - chosen.size]]])
    return np.sort(chosen)
