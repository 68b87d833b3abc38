"""Probes of real-valued features (positions, counts): ridge regression on all neurons, least squares on the top k.

Targets are floats, NaN where a row has none. Metrics are those of `schemas.REGRESSION_METRICS`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError
from sparse_probing.probes.data import ProbeData, prepare
from sparse_probing.probes.heuristic import default_k_values
from sparse_probing.probes.logistic import scale_activations
from sparse_probing.probes.methods import Request
from sparse_probing.probes.metrics import regression_metrics
from sparse_probing.probes.ranking import rank_neurons
from sparse_probing.probes.results import ProbeFit
from sparse_probing.probes.single import default_split
from sparse_probing.schemas import SPLITS

Floats = NDArray[np.float64]
# Ridge strengths per training row that `dense` compares on validation; activations are over ten standard deviations.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, eq=False)
class TargetData(ProbeData):
    """Rows with a target. `positive` tells which targets lie above the training median, for criteria made for classes."""

    target: Floats


def prepare_targets(
    X: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    split: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    rng: np.random.Generator | int = 0,
) -> TargetData:
    """Check a regression feature's arrays and keep the rows that have a target.

    Raises
    ------
    DataError
        If shapes do not fit, a target is infinite, or the training targets do not vary.
    """
    target = np.asarray(y, np.float64)
    n_samples = np.shape(X)[0]
    if target.shape != (n_samples,):
        raise DataError(f"{n_samples} rows of activations with targets of shape {target.shape}; expected one each.")
    if np.isinf(target).any():
        raise DataError(f"{int(np.isinf(target).sum())} targets are infinite.", remedy="Use NaN for rows without one.")
    known = ~np.isnan(target)
    codes = default_split(known.astype(np.int8), groups, n_samples, rng) if split is None else np.asarray(split)
    training = target[known & (codes == 0)] if codes.shape == (n_samples,) else target[known]
    if len(training) == 0 or np.ptp(training) == 0:
        raise DataError(
            f"{len(training)} training targets, all equal; a regression probe needs varied ones.",
            remedy="Add labelled rows, or split otherwise.",
        )
    middle = np.median(training)
    middle = middle if (training > middle).any() else np.mean(training)
    signs = np.where(known, np.where(target > middle, 1, -1), 0).astype(np.int8)
    data = prepare(X, signs, groups, split=codes, offset=offset, scale=scale, rng=rng)
    return TargetData(**vars(data), target=target[data.row_ids])


def dense(request: Request) -> list[ProbeFit]:
    """Ridge regression on every neuron; the strength of best validation R² (the middle one without validation rows)."""
    data = _targets(request)
    begun = time.perf_counter()
    rows, compared = data.rows("train"), data.rows("validation")
    values = data.values()
    scaled = scale_activations(values[rows])
    centre = data.target[rows].mean()
    spectrum, vectors = scipy.linalg.eigh(scaled.Z.T @ scaled.Z, check_finite=False)
    projected = vectors.T @ (scaled.Z.T @ (data.target[rows] - centre))
    best: tuple[float, Floats, float] | None = None
    for ridge in RIDGES if len(compared) else RIDGES[2:3]:
        beta = vectors @ (projected / (np.maximum(spectrum, 0.0) + ridge * len(rows)))
        coef = (beta if scaled.basis is None else scaled.basis @ beta) * scaled.scale
        intercept = float(centre - coef @ scaled.mean)
        quality = 0.0
        if len(compared):
            quality = regression_metrics(data.target[compared], values[compared] @ coef + intercept)["r2"]
        if best is None or quality > best[0]:
            best = (quality, coef, ridge)
    assert best is not None  # the list of strengths is never empty
    _, coef, ridge = best
    intercept = float(centre - coef @ scaled.mean)
    seconds = time.perf_counter() - begun
    chosen = "chosen on validation" if len(compared) else "no validation rows"
    return [
        ProbeFit(
            method=request.method,
            k=data.n_neurons,
            n_candidates=data.n_neurons,
            status="ok",
            converged=True,
            seconds=seconds,
            message=f"ridge {ridge:g} per row, {chosen}",
            metrics=_evaluate(data, values @ coef + intercept),
            support=np.arange(data.n_neurons),
            coef=coef,
            intercept=intercept,
        )
    ]


def sweep(request: Request) -> list[ProbeFit]:
    """Least squares on the top k neurons of a ranking, for each k.

    ``f_stat`` ranks by the squared correlation with the target; the other criteria see the target cut at its training
    median.
    """
    data = _targets(request)
    rows = data.rows("train")
    if request.ranking == "f_stat":
        order = np.argsort(-_squared_correlation(data), kind="stable")
    else:
        order = rank_neurons(data, request.ranking, rng=request.rng)
    fits = []
    for k in sorted({min(int(k), len(order)) for k in request.k_values or default_k_values() if k >= 1}):
        begun = time.perf_counter()
        values = data.values(slice(None), order[:k])
        scaled = scale_activations(values[rows])
        centre = data.target[rows].mean()
        beta = scipy.linalg.lstsq(scaled.Z, data.target[rows] - centre, check_finite=False, lapack_driver="gelsd")[0]
        coef = (beta if scaled.basis is None else scaled.basis @ beta) * scaled.scale
        intercept = float(centre - coef @ scaled.mean)
        predicted = values @ coef + intercept
        fits.append(
            ProbeFit(
                method=request.method,
                ranking=request.ranking,
                k=k,
                n_candidates=data.n_neurons,
                status="ok",
                converged=True,
                objective=float(np.mean((predicted[rows] - data.target[rows]) ** 2)),
                seconds=time.perf_counter() - begun,
                metrics=_evaluate(data, predicted),
                support=order[:k],
                coef=coef,
                intercept=intercept,
            )
        )
    return fits


def _targets(request: Request) -> TargetData:
    if not isinstance(request.data, TargetData):
        raise DataError("A regression method was given class labels.", remedy="Call it through METHODS.")
    return request.data


def _squared_correlation(data: TargetData) -> Floats:
    rows = data.rows("train")
    centred = data.target[rows] - data.target[rows].mean()
    out = np.empty(data.n_neurons)
    for start in range(0, data.n_neurons, 512):
        neurons = np.arange(start, min(start + 512, data.n_neurons))
        values = data.values(rows, neurons)
        values -= values.mean(axis=0)
        energy = np.einsum("ij,ij->j", values, values)
        out[neurons] = np.divide((centred @ values) ** 2, energy, out=np.zeros(len(neurons)), where=energy > 1e-20)
    return out / float(centred @ centred)


def _evaluate(data: TargetData, predicted: Floats) -> dict[str, dict[str, float]]:
    parts = {name: data.rows(name) for name in SPLITS}
    return {name: regression_metrics(data.target[rows], predicted[rows]) for name, rows in parts.items() if len(rows)}
