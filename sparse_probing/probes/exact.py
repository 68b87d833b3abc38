"""The reference's experiments with exact selection: sweeps, tuning, iterative pruning, and the effect of filtering.

Supports come from `optimal` (weighted hinge loss, ridge); objective, bound, gap, cuts and status of a fit are that
problem's. Coefficients and metrics are those of the balanced logistic regression refitted on the support, so that they
compare with every other method's. `optimal` is imported when a method runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparse_probing.errors import SparseProbingError
from sparse_probing.probes.data import ProbeData
from sparse_probing.probes.fitting import fit_support
from sparse_probing.probes.logistic import plain_scaled
from sparse_probing.probes.methods import Request
from sparse_probing.probes.ranking import rank_neurons
from sparse_probing.probes.results import STATUSES, ProbeFit, unfitted

if TYPE_CHECKING:
    from sparse_probing.probes.optimal import OptimalFit

Floats = NDArray[np.float64]
N_CANDIDATES = 50
K_VALUES = tuple(range(1, 9))
PRUNED_K = 5
N_PRUNINGS = 10
# Multiples of the customary regularisation n^(-1/2) that `tune` compares on validation.
GAMMA_FACTORS = (0.1, 1.0, 10.0)
FILTERS = (25, 50, 100, 200)


def sweep(request: Request) -> list[ProbeFit]:
    """The best k of the ranking's first 50 neurons, k = 1 to 8 unless asked otherwise."""
    pool = _pool(request, N_CANDIDATES)
    return _sweep(request, pool, request.k_values or K_VALUES, 1.0, 0)


def tune(request: Request) -> list[ProbeFit]:
    """The sweep at three regularisations; for each k the one of best validation MCC. `step` numbers the choice.

    Without validation rows the customary regularisation is kept.
    """
    pool, k_values = _pool(request, N_CANDIDATES), request.k_values or K_VALUES
    runs = [_sweep(request, pool, k_values, factor, step) for step, factor in enumerate(GAMMA_FACTORS)]
    chosen = []
    for fits in zip(*runs, strict=True):
        quality = np.array([fit.metrics.get("validation", {}).get("mcc", np.nan) for fit in fits])
        best = GAMMA_FACTORS.index(1.0) if np.isnan(quality).all() else int(np.nanargmax(quality))
        told = f"gamma = {GAMMA_FACTORS[best]:g} / sqrt(n), chosen on validation"
        fit = fits[best]
        message = "; ".join(filter(None, (fit.message, told)))
        chosen.append(replace(fit, message=message, seconds=sum(one.seconds for one in fits)))
    return chosen


def prune(request: Request) -> list[ProbeFit]:
    """The best k (five) neurons, ten times over, the neuron of largest coefficient removed each time.

    `step` counts the removals; candidates are the ranking's first 50 neurons that are left. How slowly the score falls
    tells how redundantly a feature is represented.
    """
    order = _order(request)
    removed: set[int] = set()
    fits = []
    for k in request.k_values or (PRUNED_K,):
        removed.clear()
        for step in range(N_PRUNINGS):
            left = np.array([neuron for neuron in order if neuron not in removed][:N_CANDIDATES], np.intp)
            if len(left) == 0:
                break
            fit = _sweep(request, left, (k,), 1.0, step)[0]
            fits.append(fit)
            if len(fit.support) == 0:
                break
            removed.add(_strongest(request.data, fit))
    return fits


def compare_filters(request: Request) -> list[ProbeFit]:
    """The sweep for 25, 50, 100 and 200 candidates: what a filter before exact selection costs. `step` numbers them."""
    fits: list[ProbeFit] = []
    sizes = sorted({min(size, request.data.n_neurons) for size in FILTERS})
    for step, size in enumerate(sizes):
        fits += _sweep(request, _pool(request, size), request.k_values or K_VALUES, 1.0, step)
    return fits


def _order(request: Request) -> NDArray[np.intp]:
    return rank_neurons(request.data, request.ranking, scores=request.scores, rng=request.rng)


def _pool(request: Request, n_candidates: int) -> NDArray[np.intp]:
    return _order(request)[:n_candidates]


def _strongest(data: ProbeData, fit: ProbeFit) -> int:
    spread = data.values(data.rows("train"), fit.support).std(axis=0)
    return int(fit.support[np.argmax(np.abs(fit.coef) * spread)])


def _sweep(
    request: Request, pool: NDArray[np.intp], k_values: Sequence[int], factor: float, step: int
) -> list[ProbeFit]:
    """Exact fits on a pool of candidates, smallest k first; a failure is a fit that says so."""
    from sparse_probing.probes import optimal

    data = request.data
    rows = data.rows("train")
    sizes = sorted({min(int(k), len(pool)) for k in k_values if k >= 1})
    Z = plain_scaled(data.values(rows, pool)).Z
    begun = time.perf_counter()
    try:
        found = optimal.fit_optimal_path(
            Z,
            data.signs[rows],
            sizes,
            standardise=False,
            gamma=factor * len(rows) ** -0.5,
            time_limit_seconds=request.time_limit_seconds,
        )
    except SparseProbingError as error:
        return [
            unfitted(
                request.method,
                k,
                str(error),
                n_candidates=len(pool),
                ranking=request.ranking,
                step=step,
                seconds=time.perf_counter() - begun,
            )
            for k in sizes
        ]
    return [_refit(request, pool, k, result, step) for k, result in zip(sizes, found, strict=True)]


def _refit(request: Request, pool: NDArray[np.intp], k: int, result: OptimalFit, step: int) -> ProbeFit:
    support = pool[np.asarray(result.support, np.intp)]
    if len(support) > k:
        told = f"{len(support)} neurons came back where at most {k} were asked for."
        return unfitted(request.method, k, told, n_candidates=len(pool), ranking=request.ranking, step=step)
    fit, _ = fit_support(
        request.data,
        support,
        method=request.method,
        k=k,
        n_candidates=len(pool),
        ranking=request.ranking,
        step=step,
        bootstrap=request.bootstrap,
    )
    status = result.status if result.status in STATUSES else "time_limit"
    note = None if result.status == status else f"The exact search ended with {result.status}."
    return replace(
        fit,
        status=status,
        converged=fit.converged and status == "optimal",
        objective=float(result.objective),
        bound=float(result.bound),
        gap=float(result.gap),
        n_cuts=int(result.n_cuts),
        seconds=float(result.seconds) + fit.seconds,
        message="; ".join(filter(None, (fit.message, note))) or None,
    )
