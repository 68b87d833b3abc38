"""Probes of real-valued features (positions, counts): ridge regression on all neurons, least squares on the top k, baselines.

Targets are floats, NaN where a row has none. Metrics are those of `schemas.REGRESSION_METRICS`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError
from sparse_probing.probes.data import TargetData, middle_of
from sparse_probing.probes.experiments.baselines import METHOD
from sparse_probing.probes.experiments.heuristic import default_k_values
from sparse_probing.probes.metrics import regression_metrics
from sparse_probing.probes.ranking import rank_neurons
from sparse_probing.probes.registry import Request
from sparse_probing.probes.results import ProbeFit, finite
from sparse_probing.probes.solvers.logistic import scale_activations
from sparse_probing.probes.uncertainty.intervals import r2_interval
from sparse_probing.schemas import SPLITS

Floats = NDArray[np.float64]
# Ridge strengths per training row that `dense` compares on validation; activations are over ten standard deviations.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


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
    predicted = values @ coef + intercept
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
            **_evaluate(data, predicted, request.n_bootstrap),
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
    order = _order(data, request.ranking, request.rng)
    sizes = sorted({min(int(k), len(order)) for k in request.k_values or default_k_values() if k >= 1})
    return [
        _least_squares(data, order, k, method=request.method, ranking=request.ranking, n_bootstrap=request.n_bootstrap)
        for k in sizes
    ]


def target_baselines(
    data: TargetData,
    *,
    token_ids: ArrayLike | None = None,
    rotated: NDArray[np.float32] | None = None,
    ranking: str = "mean_dif",
    n_bootstrap: int = 0,
    rng: np.random.Generator | int = 0,
) -> list[ProbeFit]:
    """Baselines of a regression feature's probes on one layer, under the same variants as for classes.

    ``prevalence``: the training mean for every row. ``shuffled_labels``: the best neuron for targets exchanged within each
    split (between groups where a group has one target, else between rows). ``random_rotation``: the best direction of a
    random basis. ``token_identity``, where `token_ids` (n_samples,) are given: each token's training mean, shrunk towards
    the mean of all rows by the weight of one row.

    Parameters
    ----------
    rotated:
        (n_samples, n_neurons) X in a random basis.
    """
    generator = np.random.default_rng(rng)
    rows = data.rows("train")
    mean = float(data.target[rows].mean())
    fits = [_constant(data, np.full(len(data.target), mean), "prevalence", "training mean", n_bootstrap)]
    shuffled = _shuffled(data, generator)
    fit = _best_one(shuffled, "shuffled_labels", ranking, n_bootstrap, generator)
    fits.append(replace(fit, test_truth=shuffled.target[shuffled.rows("test")]))
    if rotated is not None:
        changed = data.with_columns(rotated[data.row_ids])
        fits.append(_best_one(changed, "random_rotation", ranking, n_bootstrap, generator))
    if token_ids is not None:
        names, token = np.unique(np.asarray(token_ids)[data.row_ids], return_inverse=True)
        count = np.bincount(token[rows], minlength=len(names))
        total = np.bincount(token[rows], data.target[rows] - mean, minlength=len(names))
        predicted = mean + (total / (count + 1.0))[token]
        fits.append(_constant(data, predicted, "token_identity", "mean target of each token on train", n_bootstrap))
    return fits


def _shuffled(data: TargetData, rng: np.random.Generator) -> TargetData:
    """The same rows with targets exchanged within each split."""
    target = data.target.copy()
    for code in range(len(SPLITS)):
        rows = data.rows(code)
        if not len(rows):
            continue
        _, first, group = np.unique(data.groups[rows], return_index=True, return_inverse=True)
        of_group = target[rows][first]
        if np.array_equal(target[rows], of_group[group]):
            target[rows] = rng.permutation(of_group)[group]
        else:
            target[rows] = rng.permutation(target[rows])
    return replace(data, target=target, positive=target > middle_of(data.target[data.rows("train")]))


def _best_one(data: TargetData, variant: str, ranking: str, n_bootstrap: int, rng: np.random.Generator) -> ProbeFit:
    order = _order(data, ranking, rng)
    return _least_squares(data, order, 1, method=METHOD, ranking=ranking, n_bootstrap=n_bootstrap, variant=variant)


def _constant(data: TargetData, predicted: Floats, variant: str, message: str, n_bootstrap: int) -> ProbeFit:
    return ProbeFit(
        method=METHOD,
        variant=variant,
        k=0,
        n_candidates=0,
        status="ok",
        converged=True,
        seconds=0.0,
        message=message,
        **_evaluate(data, predicted, n_bootstrap),
    )


def _order(data: TargetData, ranking: str, rng: np.random.Generator) -> NDArray[np.intp]:
    if ranking == "f_stat":
        return np.argsort(-_squared_correlation(data), kind="stable")
    return rank_neurons(data, ranking, rng=rng)


def _least_squares(
    data: TargetData,
    order: NDArray[np.intp],
    k: int,
    *,
    method: str,
    ranking: str,
    n_bootstrap: int,
    variant: str = "real",
) -> ProbeFit:
    """Least squares on the first k neurons of an order."""
    rows = data.rows("train")
    begun = time.perf_counter()
    values = data.values(slice(None), order[:k])
    scaled = scale_activations(values[rows])
    centre = data.target[rows].mean()
    beta = scipy.linalg.lstsq(scaled.Z, data.target[rows] - centre, check_finite=False, lapack_driver="gelsd")[0]
    coef = (beta if scaled.basis is None else scaled.basis @ beta) * scaled.scale
    intercept = float(centre - coef @ scaled.mean)
    predicted = values @ coef + intercept
    seconds = time.perf_counter() - begun
    return ProbeFit(
        method=method,
        variant=variant,
        ranking=ranking,
        k=k,
        n_candidates=data.n_neurons,
        status="ok",
        converged=True,
        objective=float(np.mean((predicted[rows] - data.target[rows]) ** 2)),
        seconds=seconds,
        **_evaluate(data, predicted, n_bootstrap),
        support=order[:k],
        coef=coef,
        intercept=intercept,
    )


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


def _evaluate(data: TargetData, predicted: Floats, n_bootstrap: int) -> dict[str, Any]:
    """What a `ProbeFit` says of how good (n_rows,) predictions are: metrics of every split, the test interval and predictions."""
    parts = {name: data.rows(name) for name in SPLITS}
    rows = parts["test"]
    low, high = r2_interval(
        data.target[rows],
        predicted[rows],
        data.groups[rows],
        n_bootstrap=n_bootstrap,
    )
    return {
        "metrics": {name: regression_metrics(data.target[at], predicted[at]) for name, at in parts.items() if len(at)},
        "test_r2_low": finite(low),
        "test_r2_high": finite(high),
        "test_predicted": predicted[rows],
    }
