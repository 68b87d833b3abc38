"""The dense probe, on every neuron of a layer: ridge-regularised logistic regression, strength chosen on validation.

It is the upper end of every sparsity curve. With more neurons than training rows it is solved in the span of the rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from sparse_probing.probes.data import ProbeData
from sparse_probing.probes.experiments.fitting import evaluate
from sparse_probing.probes.metrics import score_metrics
from sparse_probing.probes.registry import Request
from sparse_probing.probes.results import ProbeFit
from sparse_probing.probes.solvers.logistic import fit_logistic, scale_activations

C_VALUES = (0.01, 0.1, 1.0, 10.0)


def fit_dense(data: ProbeData, c_values: Sequence[float], n_bootstrap: int, variant: str = "real") -> ProbeFit:
    """Fit all neurons at once, for each C, and keep the fit of highest validation average precision (smallest C of equals).

    Without validation rows C is 1, or the first of `c_values` where 1 is not among them. The message names the C.
    """
    begun = time.perf_counter()
    values = data.values()
    rows, compared = data.rows("train"), data.rows("validation")
    scaled = scale_activations(values[rows])
    candidates = list(c_values)
    if len(compared) == 0:
        candidates = [1.0 if 1.0 in candidates else candidates[0]]
    best, best_score, best_c = None, -np.inf, candidates[0]
    start = None
    for c in candidates:
        fit = fit_logistic(values[rows], data.positive[rows], c=c, tolerance=1e-4, scaled=scaled, start=start)
        start = fit.coef_scaled
        score = 0.0
        if len(compared):
            score = score_metrics(data.positive[compared], fit.scores(values[compared]))["average_precision"]
        if score > best_score:
            best, best_score, best_c = fit, score, c
    if best is None:
        best = fit_logistic(values[rows], data.positive[rows], c=best_c, scaled=scaled)
    seconds = time.perf_counter() - begun
    judged = evaluate(data, best.scores(values), n_bootstrap)
    return ProbeFit(
        method="dense_probe",
        variant=variant,
        k=data.n_neurons,
        n_candidates=data.n_neurons,
        status="ok" if best.converged else "not_converged",
        converged=best.converged,
        objective=best.objective,
        seconds=seconds,
        message=f"C={best_c:g}, chosen on validation" if len(compared) else f"C={best_c:g}, no validation rows",
        **judged,
        support=np.arange(data.n_neurons),
        coef=best.coef,
        intercept=best.intercept,
    )


def dense(request: Request) -> list[ProbeFit]:
    """The dense probe of a request."""
    return [fit_dense(request.data, C_VALUES, request.n_bootstrap)]
