"""Audits of certificates: the optimum that an optimal probe claims is searched again by another solver.

An audit takes the scaled activations, the support and the objective of a fit, but not how they were found. It
screens neurons by the cuts of its own root relaxation, which any dual point makes valid, and hands what is left to
Gurobi's integer model. No clock decides anything here, so that equal fits have equal audits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from sparse_probing.errors import InputError
from sparse_probing.probes.optimal import integer_model
from sparse_probing.probes.optimal.cuts import Cut, Index, Pool, fix, make_cut, solve_by_columns
from sparse_probing.probes.optimal.hinge_dual import HingeProblem
from sparse_probing.probes.optimal.incumbents import Incumbent
from sparse_probing.probes.optimal.inputs import sample_weights
from sparse_probing.probes.optimal.interior_point import Array

# Relative: to this the integer model is solved, and below this nothing better is looked for.
TOLERANCE = 1e-6
INNER_TOLERANCE = 1e-7
# Where an integer model ends unsolved. The hardest of a study's models take some hundreds.
MAX_CUTS = 3000


@dataclass(frozen=True)
class Audit:
    """What another solver found.

    Attributes
    ----------
    audited_by:
        Name and version of the solver; None if it could not answer.
    audit_gap:
        ``(objective − optimum) / |objective|`` with the optimum of the integer model: above zero if a better support was
        found, below it if the objective is less than the support can have. None without an answer.
    message:
        Why there is no answer; None if there is one.
    n_left:
        Neurons that the screening left to the integer model.
    """

    audited_by: str | None
    audit_gap: float | None
    message: str | None
    n_left: int


def audit_hinge(
    Z: Array, y: Array, support: Index, objective: float, *, ridge: float, max_cuts: int = MAX_CUTS
) -> Audit:
    """Solve the balanced hinge-loss problem on ``len(support)`` neurons again, and compare the optimum with an objective.

    Parameters
    ----------
    Z:
        (n_samples, n_neurons) activations as they were fitted: scaled.
    y:
        (n_samples,) labels ±1 as float64, both present.
    support, objective:
        Neurons, ascending, and value: what the certificate says is best.
    ridge:
        λ in λ/2 ‖β‖².
    max_cuts:
        Where the integer model ends unsolved.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        weights = sample_weights("balanced", y, np.ones(len(y), dtype=bool))
        problem = HingeProblem(Z, y, weights, 1.0 / ridge)
        left, cuts = _screened(problem, support, objective)
        try:
            return _solved(problem.restrict(left), np.searchsorted(left, support), objective, cuts, max_cuts)
        except InputError as error:
            return Audit(None, None, f"not audited: {error.message}", left.size)


def _screened(problem: HingeProblem, support: Index, objective: float) -> tuple[Index, list[Cut]]:
    """Neurons that some support better than the objective may hold, and those of the support; cuts over them."""
    k = len(support)
    pool = Pool()
    middle = make_cut(problem, problem.middle())
    pool.add(middle)
    everything = np.arange(problem.n_neurons)
    likely = middle.gains.copy()
    likely[support] += middle.gains.max()
    solve_by_columns(problem, everything[:0], everything, k, likely, tolerance=TOLERANCE, on_cut=pool.add)
    Incumbent(problem, k, INNER_TOLERANCE, on_cut=pool.add).offer(support.tolist())
    out, _ = fix(pool.cuts, k, objective - TOLERANCE * abs(objective))
    out[support] = False
    left = np.flatnonzero(~out)
    return left, [Cut(cut.base, cut.gains[left]) for cut in pool.cuts]


def _solved(problem: HingeProblem, support: Index, objective: float, cuts: list[Cut], max_cuts: int) -> Audit:
    pool = Pool()
    for cut in cuts:
        pool.add(cut)
    name = integer_model.solver_name()
    incumbent = Incumbent(problem, len(support), INNER_TOLERANCE, on_cut=pool.add)
    incumbent.offer(support.tolist())
    everything = np.arange(problem.n_neurons)
    found = integer_model.search(problem, incumbent, everything[:0], everything, pool, gap=TOLERANCE, max_cuts=max_cuts)
    if found.status == "size_limit":
        told = f"{problem.n_neurons:,} neurons are left, Gurobi's licence takes {integer_model.LICENSED_NEURONS:,}"
        return Audit(None, None, f"not audited: {told}", problem.n_neurons)
    if found.status != "optimal" or not np.isfinite(found.value):
        told = f"Gurobi's model of {problem.n_neurons:,} neurons was not solved within {max_cuts:,} cuts"
        return Audit(None, None, f"not audited: {told}", problem.n_neurons)
    gap = (objective - found.value) / (abs(objective) or 1.0)
    return Audit(name, float(gap), None, problem.n_neurons)
