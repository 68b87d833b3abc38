"""The reference's experiments with optimal selection: sweeps, tuning, iterative pruning, and the effect of filtering.

All search the whole layer unless fewer candidates are asked for. Supports come from `optimal` (weighted hinge loss, ridge);
objective, bound, gap, cuts and status of a fit are that problem's. Coefficients and metrics are those of the balanced logistic
regression refitted on the support, so that they compare with every other method's. `optimal` is imported when a method runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparse_probing.errors import SparseProbingError
from sparse_probing.probes.data import ProbeData
from sparse_probing.probes.experiments.fitting import fit_support
from sparse_probing.probes.ranking import rank_neurons
from sparse_probing.probes.registry import Request
from sparse_probing.probes.results import STATUSES, ProbeFit, unfitted
from sparse_probing.probes.solvers.logistic import UNIT_STANDARD_DEVIATIONS, plain_scaled

if TYPE_CHECKING:
    from sparse_probing.probes.optimal.search import OptimalFit

Floats = NDArray[np.float64]
K_VALUES = tuple(range(1, 9))
PRUNED_K = 5
N_PRUNINGS = 10
# Multiples of the customary regularisation n^(-1/2) that `tune` compares on validation.
GAMMA_FACTORS = (0.1, 1.0, 10.0)
FILTERS = (25, 50, 100, 200)


def sweep(request: Request) -> list[ProbeFit]:
    """The best k neurons, k = 1 to 8 unless asked otherwise."""
    candidates = _candidates(request, request.n_candidates)
    return _audited(request, candidates, _sweep(request, candidates, request.k_values or K_VALUES, 1.0, 0))


def tune(request: Request) -> list[ProbeFit]:
    """The sweep at three regularisations; for each k the one of best validation MCC. `step` numbers the choice.

    Without validation rows the customary regularisation is kept.
    """
    candidates, k_values = _candidates(request, request.n_candidates), request.k_values or K_VALUES
    runs = [_sweep(request, candidates, k_values, factor, step) for step, factor in enumerate(GAMMA_FACTORS)]
    chosen = []
    for fits in zip(*runs, strict=True):
        quality = np.array([fit.metrics.get("validation", {}).get("mcc", np.nan) for fit in fits])
        best = GAMMA_FACTORS.index(1.0) if np.isnan(quality).all() else int(np.nanargmax(quality))
        told = f"gamma = {GAMMA_FACTORS[best]:g} / sqrt(n), chosen on validation"
        fit = fits[best]
        message = "; ".join(filter(None, (fit.message, told)))
        chosen.append(replace(fit, message=message, seconds=sum(one.seconds for one in fits)))
    return _audited(request, candidates, chosen)


def prune(request: Request) -> list[ProbeFit]:
    """The best k (five) neurons, ten times over, the neuron of largest coefficient removed each time.

    `step` counts the removals; candidates are the neurons that are left, or the best of the ranking among them. How
    slowly the score falls tells how redundantly a feature is represented.
    """
    # The ranking decides nothing where every neuron that is left is a candidate.
    whole = request.n_candidates is None
    order, ranking = (np.arange(request.data.n_neurons), None) if whole else (_order(request), request.ranking)
    fits = []
    for k in request.k_values or (PRUNED_K,):
        removed: set[int] = set()
        for step in range(N_PRUNINGS):
            left = np.array([neuron for neuron in order if neuron not in removed][: request.n_candidates], np.intp)
            if len(left) == 0:
                break
            candidates = _prepared(request, left, ranking)
            fit = _sweep(request, candidates, (k,), 1.0, step)[0]
            fits += _audited(request, candidates, [fit])
            if len(fit.support) == 0:
                break
            removed.add(_strongest(request.data, fit))
    return fits


def compare_filters(request: Request) -> list[ProbeFit]:
    """The sweep for 25, 50, 100 and 200 candidates and for the whole layer: what a filter before optimal selection costs.

    `step` numbers them.
    """
    fits: list[ProbeFit] = []
    n_neurons = request.data.n_neurons
    for step, size in enumerate(sorted({*(min(size, n_neurons) for size in FILTERS), n_neurons})):
        candidates = _candidates(request, size)
        found = _sweep(request, candidates, request.k_values or K_VALUES, 1.0, step)
        fits += _audited(request, candidates, found)
    return fits


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Neurons to choose from, (n_candidates,), and their (n_train, n_candidates) training activations, scaled.

    `ranking` is the criterion that chose them among the layer's neurons, None where all are there.
    """

    neurons: NDArray[np.intp]
    Z: Floats
    ranking: str | None


def _whole(request: Request, n_candidates: int | None) -> bool:
    return n_candidates is None or n_candidates >= request.data.n_neurons


def _order(request: Request) -> NDArray[np.intp]:
    return rank_neurons(request.data, request.ranking, scores=request.scores, rng=request.rng)


def _candidates(request: Request, n_candidates: int | None) -> _Candidates:
    """The best of the ranking, or the whole layer, which needs none."""
    if _whole(request, n_candidates):
        return _prepared(request, np.arange(request.data.n_neurons), None)
    return _prepared(request, _order(request)[:n_candidates], request.ranking)


def _prepared(request: Request, neurons: NDArray[np.intp], ranking: str | None) -> _Candidates:
    data = request.data
    return _Candidates(neurons, plain_scaled(data.values(data.rows("train"), neurons)).Z, ranking)


def _strongest(data: ProbeData, fit: ProbeFit) -> int:
    spread = data.values(data.rows("train"), fit.support).std(axis=0)
    return int(fit.support[np.argmax(np.abs(fit.coef) * spread)])


def _sweep(
    request: Request, candidates: _Candidates, k_values: Sequence[int], factor: float, step: int
) -> list[ProbeFit]:
    """Optimal fits on some candidates, smallest k first; a failure is a fit that says so."""
    from sparse_probing.probes import optimal

    data, n_candidates = request.data, len(candidates.neurons)
    rows = data.rows("train")
    sizes = sorted({min(int(k), n_candidates) for k in k_values if k >= 1})
    begun = time.perf_counter()
    try:
        found = optimal.fit_optimal_path(
            candidates.Z,
            data.signs[rows],
            sizes,
            standardise=False,
            gamma=factor * len(rows) ** -0.5,
            time_limit_seconds=request.time_limit_seconds,
            solver=request.solver,
        )
    except SparseProbingError as error:
        return [
            unfitted(
                request.method,
                k,
                str(error),
                n_candidates=n_candidates,
                ranking=candidates.ranking,
                step=step,
                seconds=time.perf_counter() - begun,
            )
            for k in sizes
        ]
    return [_refit(request, candidates, k, result, step) for k, result in zip(sizes, found, strict=True)]


def _refit(request: Request, candidates: _Candidates, k: int, result: OptimalFit, step: int) -> ProbeFit:
    support = candidates.neurons[np.asarray(result.support, np.intp)]
    n_candidates = len(candidates.neurons)
    if len(support) > k:
        told = f"{len(support)} neurons came back where at most {k} were asked for."
        return unfitted(request.method, k, told, n_candidates=n_candidates, ranking=candidates.ranking, step=step)
    fit, _ = fit_support(
        request.data,
        support,
        method=request.method,
        k=k,
        n_candidates=n_candidates,
        ranking=candidates.ranking,
        step=step,
        n_bootstrap=request.n_bootstrap,
    )
    status = result.status if result.status in STATUSES else "time_limit"
    note = None if result.status == status else f"The search ended with {result.status}."
    if status == "size_limit":
        note = f"{result.n_candidates_left:,} neurons were left to Gurobi, more than its licence takes; solver 'tree' has no limit."
    return replace(
        fit,
        status=status,
        converged=fit.converged and status == "optimal",
        n_neurons=request.data.n_neurons,
        ridge=float(result.ridge),
        unit_standard_deviations=UNIT_STANDARD_DEVIATIONS,
        objective=float(result.objective),
        bound=float(result.bound),
        gap=float(result.gap),
        n_cuts=int(result.n_cuts),
        seconds=float(result.seconds) + fit.seconds,
        message="; ".join(filter(None, (fit.message, note))) or None,
    )


def _audited(request: Request, candidates: _Candidates, fits: Sequence[ProbeFit]) -> list[ProbeFit]:
    """The fits with the audits that were asked for."""
    return [
        _with_audit(request.data, candidates, fit) if fit.gap is not None and request.wants_audit(fit.k) else fit
        for fit in fits
    ]


def _with_audit(data: ProbeData, candidates: _Candidates, fit: ProbeFit) -> ProbeFit:
    if fit.status != "optimal" or fit.objective is None or fit.ridge is None:
        return replace(fit, message="; ".join(filter(None, (fit.message, "not audited: no optimum was proved"))))
    from sparse_probing.probes.optimal import audits

    at = np.flatnonzero(np.isin(candidates.neurons, fit.support))
    signs = data.signs[data.rows("train")].astype(np.float64)
    audit = audits.audit_hinge(candidates.Z, signs, at, fit.objective, ridge=fit.ridge)
    message = "; ".join(filter(None, (fit.message, audit.message))) or None
    return replace(fit, audited_by=audit.audited_by, audit_gap=audit.audit_gap, message=message)
