"""Telescopic sweeps: an elastic net on many candidates, then on ever fewer, the weakest coefficients dropped as k falls.

The penalty follows k as in the reference: C = k/20 and an ℓ1 share of exp(−k/20), kept within 0.1 and 0.9.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparse_probing.probes.experiments.fitting import evaluate
from sparse_probing.probes.experiments.heuristic import default_k_values
from sparse_probing.probes.ranking import rank_neurons
from sparse_probing.probes.registry import Request
from sparse_probing.probes.results import ProbeFit
from sparse_probing.probes.solvers.elastic_net import fit_elastic_net
from sparse_probing.probes.solvers.logistic import Scaled, plain_scaled

# Multiples of the customary C and ℓ1 shares that `tune` compares on validation.
C_FACTORS = (0.1, 1.0, 10.0)
L1_RATIOS = (None, 0.5)
MAX_K = 256


def penalty(k: int) -> tuple[float, float]:
    """C and ℓ1 share at k neurons."""
    return k / 20.0, float(np.clip(np.exp(-k / 20.0), 0.1, 0.9))


def sweep(request: Request) -> list[ProbeFit]:
    """Elastic nets from the largest k down, each on the k neurons of largest coefficient of the one before.

    The first candidates are the ranking's best max(k). A support has fewer than k neurons where the penalty set some to
    zero. Fits come smallest k first.
    """
    k_values = request.k_values or default_k_values(MAX_K)
    order = rank_neurons(request.data, request.ranking, scores=request.scores, rng=request.rng)
    return _telescope(request, order, k_values, 1.0, None, request.n_bootstrap)


def tune(request: Request) -> list[ProbeFit]:
    """The same sweep for several strengths and ℓ1 shares; for each k the one of best validation average precision.

    `step` numbers the setting that was chosen; without validation rows it is the customary one.
    """
    k_values = request.k_values or default_k_values(MAX_K)
    order = rank_neurons(request.data, request.ranking, scores=request.scores, rng=request.rng)
    settings = [(factor, share) for share in L1_RATIOS for factor in C_FACTORS]
    customary = settings.index((1.0, None))
    runs = [_telescope(request, order, k_values, factor, share, 0) for factor, share in settings]
    chosen = []
    for fits in zip(*runs, strict=True):
        quality = [fit.metrics.get("validation", {}).get("average_precision", float("nan")) for fit in fits]
        best = customary if np.isnan(quality).all() else int(np.nanargmax(quality))
        fit = fits[best]
        values = request.data.values(slice(None), fit.support)
        judged = evaluate(request.data, fit.intercept + values @ fit.coef, request.n_bootstrap)
        factor, share = settings[best]
        told = f"C = {factor:g} k/20, l1_ratio = {'exp(-k/20)' if share is None else share}, chosen on validation"
        seconds = sum(one.seconds for one in fits)
        chosen.append(
            replace(
                fit,
                step=best,
                seconds=seconds,
                message="; ".join(filter(None, (fit.message, told))),
                **judged,
            )
        )
    return chosen


def _telescope(
    request: Request,
    order: NDArray[np.intp],
    k_values: Sequence[int],
    factor: float,
    share: float | None,
    n_bootstrap: int,
) -> list[ProbeFit]:
    data = request.data
    sizes = sorted({min(int(k), len(order)) for k in k_values if k >= 1}, reverse=True)
    candidates = order[: sizes[0]]
    rows = data.rows("train")
    values = data.values(slice(None), candidates)
    everything = plain_scaled(values[rows])
    kept, start = np.arange(len(candidates)), np.zeros(len(candidates))
    fits = []
    for k in sizes:
        begun = time.perf_counter()
        strongest = np.argsort(-np.abs(start), kind="stable")[:k]
        kept, start = kept[strongest], start[strongest]
        c, l1_ratio = penalty(k)
        narrowed = Scaled(everything.Z[:, kept], None, everything.mean[kept], everything.scale[kept])
        fit = fit_elastic_net(
            narrowed.Z,
            data.positive[rows],
            c=c * factor,
            l1_ratio=l1_ratio if share is None else share,
            start=start,
            scaled=narrowed,
        )
        seconds = time.perf_counter() - begun
        start = fit.coef_scaled
        found = np.flatnonzero(fit.coef_scaled)
        found = found[np.argsort(-np.abs(fit.coef_scaled[found]), kind="stable")]
        judged = evaluate(data, fit.intercept + values[:, kept] @ fit.coef, n_bootstrap)
        fits.append(
            ProbeFit(
                method=request.method,
                ranking=request.ranking,
                k=k,
                n_candidates=len(kept),
                status="ok" if fit.converged else "not_converged",
                converged=fit.converged,
                objective=fit.objective,
                seconds=seconds,
                message=None if fit.converged else f"Stopped after {fit.n_iterations} Newton steps.",
                **judged,
                support=candidates[kept[found]],
                coef=fit.coef[found],
                intercept=fit.intercept,
            )
        )
    return fits[::-1]
