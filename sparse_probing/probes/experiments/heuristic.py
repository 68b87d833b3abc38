"""Sparse probes on the top of a ranking: over k, neuron by neuron, criterion by criterion.

Rankings are made on train (`ranking`); the fits are balanced logistic regressions (`logistic`). Elastic-net sweeps and
optimal selection live elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.data import ProbeData
from sparse_probing.probes.experiments.fitting import fit_support
from sparse_probing.probes.ranking import rank_neurons
from sparse_probing.probes.registry import Request
from sparse_probing.probes.results import ProbeFit

# Neurons that `monosemantic` fits one by one.
N_MONOSEMANTIC = 30
# Criteria that `compare_criteria` compares, on the neurons that a first filter by mean difference leaves.
COMPARED = ("mean_dif", "f_stat", "mi", "lr", "random")
N_FILTERED = 512


def default_k_values(max_k: int = 256) -> tuple[int, ...]:
    """The customary list: 1–8, 10, 12, then 16, 32, … up to `max_k`."""
    doubled = [16 * 2**power for power in range(32) if 16 * 2**power <= max_k]
    return tuple(k for k in (*range(1, 9), 10, 12, *doubled) if k <= max_k)


def sweep_order(
    data: ProbeData,
    order: NDArray[np.intp],
    k_values: Sequence[int],
    method: str,
    ranking: str | None,
    c: float,
    n_bootstrap: int,
) -> list[ProbeFit]:
    """Fits on the first k neurons of an order, each starting from the last one's coefficients."""
    fits = []
    start = np.empty(0)
    for k in sorted({min(int(k), len(order)) for k in k_values if k >= 1}):
        support = order[:k]
        fit, state = fit_support(
            data,
            support,
            method=method,
            k=k,
            n_candidates=data.n_neurons,
            ranking=ranking,
            c=c,
            start=np.concatenate([start, np.zeros(k - len(start))]),
            n_bootstrap=n_bootstrap,
        )
        start = state.coef_scaled
        fits.append(fit)
    return fits


def sweep(request: Request) -> list[ProbeFit]:
    """Heuristic sparsity sweep over the customary list of k."""
    order = rank_neurons(request.data, request.ranking, scores=request.scores, rng=request.rng)
    k_values = request.k_values or default_k_values()
    return sweep_order(request.data, order, k_values, request.method, request.ranking, 1.0, request.n_bootstrap)


def fast_sweep(request: Request) -> list[ProbeFit]:
    """The same sweep at powers of two up to 256, where no k is asked for."""
    order = rank_neurons(request.data, request.ranking, scores=request.scores, rng=request.rng)
    k_values = request.k_values or tuple(2**power for power in range(9))
    return sweep_order(request.data, order, k_values, request.method, request.ranking, 1.0, request.n_bootstrap)


def monosemantic(request: Request) -> list[ProbeFit]:
    """One logistic regression for each of the best 30 neurons of the ranking; `step` is the place in it, from 0."""
    data = request.data
    order = rank_neurons(data, request.ranking, scores=request.scores, rng=request.rng)[:N_MONOSEMANTIC]
    return [
        fit_support(
            data,
            [neuron],
            method=request.method,
            k=1,
            n_candidates=data.n_neurons,
            ranking=request.ranking,
            step=place,
            n_bootstrap=request.n_bootstrap,
        )[0]
        for place, neuron in enumerate(order)
    ]


def compare_criteria(request: Request) -> list[ProbeFit]:
    """One sweep for each ranking criterion, all on the 512 neurons of largest mean difference."""
    data = request.data
    kept = np.sort(rank_neurons(data, "mean_dif", scores=request.scores, rng=request.rng)[:N_FILTERED])
    filtered = data.with_neurons(kept)
    fits = []
    for criterion in COMPARED:
        order = kept[rank_neurons(filtered, criterion, rng=request.rng)]
        k_values = [k for k in request.k_values or default_k_values() if k <= len(order)]
        fits += sweep_order(data, order, k_values, request.method, criterion, 1.0, request.n_bootstrap)
    return [replace(fit, n_candidates=len(kept)) for fit in fits]
