"""From a support to a `ProbeFit`: the logistic refit on it, metrics on the three splits, the test interval.

Every method that ends in a set of neurons and a linear score calls this module. How the set is found is decided elsewhere.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing.probes.data import ProbeData
from sparse_probing.probes.metrics import classification_metrics
from sparse_probing.probes.results import ProbeFit, finite
from sparse_probing.probes.solvers.logistic import LogisticFit, fit_logistic
from sparse_probing.probes.uncertainty.intervals import score_interval
from sparse_probing.schemas import SPLITS

Floats = NDArray[np.float64]


def evaluate(data: ProbeData, scores: Floats, n_bootstrap: int) -> dict[str, Any]:
    """What a `ProbeFit` says of how good (n_rows,) scores are: metrics of every split, the test interval and predictions."""
    metrics = {}
    for name in SPLITS:
        rows = data.rows(name)
        if len(rows):
            metrics[name] = classification_metrics(data.positive[rows], scores[rows])
    rows = data.rows("test")
    predicted = scores[rows] > 0
    low, high = score_interval(
        data.positive[rows],
        predicted,
        data.groups[rows],
        n_bootstrap=n_bootstrap,
    )
    return {
        "metrics": metrics,
        "test_mcc_low": finite(low[0]),
        "test_mcc_high": finite(high[0]),
        "test_predicted": predicted,
    }


def fit_support(
    data: ProbeData,
    support: ArrayLike,
    *,
    method: str,
    k: int,
    n_candidates: int,
    variant: str = "real",
    ranking: str | None = None,
    step: int = 0,
    c: float = 1.0,
    start: Floats | None = None,
    n_bootstrap: int = 0,
    message: str | None = None,
) -> tuple[ProbeFit, LogisticFit]:
    """Balanced logistic regression on a support, evaluated: a `ProbeFit` and the fit behind it."""
    chosen = np.asarray(support, np.intp)
    begun = time.perf_counter()
    values = data.values(slice(None), chosen)
    rows = data.rows("train")
    fit = fit_logistic(values[rows], data.positive[rows], c=c, start=start)
    seconds = time.perf_counter() - begun
    judged = evaluate(data, fit.scores(values), n_bootstrap)
    return (
        ProbeFit(
            method=method,
            variant=variant,
            ranking=ranking,
            k=k,
            n_candidates=n_candidates,
            step=step,
            status="ok" if fit.converged else "not_converged",
            converged=fit.converged,
            objective=fit.objective,
            seconds=seconds,
            message=message if fit.converged else f"Newton's method stopped after {fit.n_iterations} steps.",
            **judged,
            support=chosen,
            coef=fit.coef,
            intercept=fit.intercept,
        ),
        fit,
    )
