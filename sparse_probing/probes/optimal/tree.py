"""Branch and bound whose every node solves the relaxation to the end, instead of approaching it by cuts.

Takes arrays and a :class:`~sparse_probing.probes.optimal.cuts.Problem`, returns a bound; the caller sets the time limit.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparse_probing.probes.optimal.cuts import Cut, Index, Problem, fix, solve_by_columns
from sparse_probing.probes.optimal.incumbents import Incumbent
from sparse_probing.probes.optimal.interior_point import Array

# Branch on the neuron whose share is nearest to this: taken out, it hurts; put in, it leaves little to choose.
BRANCH_AT = 0.7


@dataclass(frozen=True)
class Node:
    """A solved node: ``fixed`` are in, the rest is to be chosen from ``free``, of which these are shares and gains."""

    bound: float
    fixed: Index
    free: Index
    shares: Array
    gains: Array


@dataclass(frozen=True)
class TreeResult:
    """``bound`` holds for every support; ``finished`` says that nothing below the threshold is left."""

    bound: float
    nodes: int
    finished: bool


class Tree:
    """One search. ``slack`` is the relative improvement below which a better support is not worth finding."""

    def __init__(
        self,
        problem: Problem,
        incumbent: Incumbent,
        *,
        slack: float,
        tolerance: float,
        keep_going: Callable[[], bool],
    ) -> None:
        self.problem, self.incumbent = problem, incumbent
        self.slack, self.tolerance, self.keep_going = slack, tolerance, keep_going
        self.nodes = 0
        self.dropped = np.inf  # the lowest bound at which anything was dropped

    def search(self, fixed: Index, free: Index, likely: Array) -> TreeResult:
        """Search all supports that hold ``fixed`` and the rest from ``free``, best bound first.

        ``likely`` (n_free,): the higher, the likelier is that neuron in the best support.
        """
        heap: list[tuple[float, int, Node]] = []

        def push(node: Node | None) -> None:
            if node is not None:
                heapq.heappush(heap, (node.bound, self.nodes, node))

        push(self._solve(fixed, free, likely))
        while heap and heap[0][0] < self._threshold():
            if not self.keep_going():
                return TreeResult(min(heap[0][0], self.dropped), self.nodes, False)
            node = heapq.heappop(heap)[2]
            at = int(np.argmin(np.abs(node.shares - BRANCH_AT)))
            rest, likely = np.delete(node.free, at), np.delete(node.shares * node.gains.max() + node.gains, at)
            push(self._solve(np.append(node.fixed, node.free[at]), rest, likely))
            push(self._solve(node.fixed, rest, likely))
        left = heap[0][0] if heap else np.inf
        return TreeResult(min(left, self.dropped, self.incumbent.value), self.nodes, True)

    def _threshold(self) -> float:
        return self.incumbent.value - self.slack * abs(self.incumbent.value)

    def _solve(self, fixed: Index, free: Index, likely: Array) -> Node | None:
        """The node with this choice, or None if nothing in it is worth having."""
        while True:
            k_free = self.incumbent.k - fixed.size
            if not 0 <= k_free <= free.size:  # every support in here was dropped before
                return None
            if k_free == 0 or free.size == k_free:
                support = fixed if k_free == 0 else np.concatenate([fixed, free])
                self._drop(self.incumbent.offer(support.tolist())[2])
                return None
            self.nodes += 1
            solved = solve_by_columns(
                self.problem,
                fixed,
                free,
                k_free,
                likely,
                tolerance=self.tolerance,
                cutoff=self._threshold(),
                keep_going=self.keep_going,
            )
            if solved.bound < self._threshold():
                chosen = free[np.argsort(-solved.shares, kind="stable")[:k_free]]
                self.incumbent.offer(np.concatenate([fixed, chosen]).tolist())
            level = self._threshold()
            if solved.bound >= level:
                self._drop(solved.bound)
                return None
            inside = float(solved.cut.gains[fixed].sum())
            out, must = fix([Cut(solved.cut.base - inside, solved.gains)], k_free, level)
            if out.any() or must.any():
                self._drop(level)
            keep = ~out & ~must
            if not must.any():
                return Node(solved.bound, fixed, free[keep], solved.shares[keep], solved.gains[keep])
            fixed, free, likely = np.concatenate([fixed, free[must]]), free[keep], solved.gains[keep]

    def _drop(self, bound: float) -> None:
        self.dropped = min(self.dropped, bound)
