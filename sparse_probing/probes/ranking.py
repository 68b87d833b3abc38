"""Criteria that order a layer's neurons on train: which candidates a sparse probe may use, and in what order.

Scores are larger for better neurons; nothing here looks at validation or test rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_probing.errors import InputError
from sparse_probing.probes.data import ProbeData
from sparse_probing.probes.single.counts import count_levels, quantise
from sparse_probing.probes.single.levels import frequency_bins, moments, mutual_information, power_sums
from sparse_probing.probes.single.neuron_scores import NeuronScores
from sparse_probing.probes.solvers.logistic import fit_logistic

CRITERIA = ("mean_dif", "f_stat", "mi", "lr", "svm", "random")
Floats = NDArray[np.float64]


def rank_neurons(
    data: ProbeData,
    criterion: str = "mean_dif",
    *,
    scores: NeuronScores | None = None,
    rng: np.random.Generator | int = 0,
) -> NDArray[np.intp]:
    """(n_neurons,) neurons from best to worst on train; equal scores by neuron number.

    Parameters
    ----------
    criterion:
        ``mean_dif``: |difference of class means| per training standard deviation (without that unit the order would
        follow the neurons' scales). ``f_stat``: one-way F. ``mi``: mutual information. ``lr``, ``svm``: |coefficient| of
        one dense logistic regression or linear support vector machine (squared hinge) on standardised activations.
        ``random``: a random order.
    scores:
        Scores of the same feature; saves computing the first three again.
    rng:
        Generator or seed of ``random``.

    Raises
    ------
    InputError
        If the criterion is unknown.
    """
    return np.argsort(-criterion_scores(data, criterion, scores=scores, rng=rng), kind="stable")


def criterion_scores(
    data: ProbeData,
    criterion: str,
    *,
    scores: NeuronScores | None = None,
    rng: np.random.Generator | int = 0,
) -> Floats:
    """(n_neurons,) scores behind `rank_neurons`, larger for better neurons."""
    if criterion not in CRITERIA:
        raise InputError(
            f"Ranking criterion {criterion!r} requested; known are {', '.join(CRITERIA)}.",
            remedy="Edit probing.ranking.",
        )
    if criterion == "random":
        return np.random.default_rng(rng).random(data.n_neurons)
    if criterion in ("lr", "svm"):
        return _dense_coefficients(data, criterion)
    if scores is not None:
        spread = scores.activation_std
        relative = np.divide(np.abs(scores.mean_difference), spread, out=np.zeros_like(spread), where=spread > 0)
        return {"mean_dif": relative, "f_stat": scores.f_statistic, "mi": scores.mutual_information}[criterion]
    return _count_criterion(data, criterion)


def _standardised_difference(data: ProbeData) -> Floats:
    """|Difference of the classes' means| over the standard deviation, straight from the columns."""
    rows = data.rows("train")
    values = data.X[rows].astype(np.float32)
    values -= values.mean(axis=0)
    positive = data.positive[rows]
    contrast = np.where(positive, 1.0 / positive.sum(), -1.0 / (~positive).sum()).astype(np.float32)
    difference = np.abs(contrast @ values).astype(np.float64)
    spread = np.sqrt(np.einsum("ij,ij->j", values, values).astype(np.float64) / len(rows))
    # Rounding alone spreads a constant float column by less than this.
    floor = 1e-6 * np.maximum(np.abs(data.X[rows[:1]].astype(np.float64)).ravel(), 1e-30)
    relative: Floats = np.divide(difference, spread, out=np.zeros_like(spread), where=spread > floor)
    return relative


def _count_criterion(data: ProbeData, criterion: str) -> Floats:
    if criterion == "mean_dif":
        return _standardised_difference(data)
    rows = data.rows("train")
    codes = data.X[rows]
    if codes.dtype != np.uint8:
        codes, _, _ = quantise(codes)
    counted = count_levels(codes, data.signs[rows], np.zeros(len(rows), np.int8))[0].counts[0]
    parts = []
    for start in range(0, data.n_neurons, 512):
        negative, positive = counted[:, start : start + 512].astype(np.float64)
        level_moments = moments(power_sums(positive), power_sums(negative + positive))
        if criterion == "mi":
            bins = frequency_bins(np.cumsum(negative + positive, axis=1))
            parts.append(mutual_information(np.cumsum(positive, axis=1), *bins, level_moments))
        else:
            parts.append(level_moments.f_statistic)
    return np.concatenate(parts)


def _dense_coefficients(data: ProbeData, criterion: str) -> Floats:
    rows = data.rows("train")
    values, positive = data.values(rows), data.positive[rows]
    if criterion == "lr":
        return np.abs(fit_logistic(values, positive, c=1.0).coef_scaled)
    from sklearn.svm import LinearSVC

    std = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) * np.divide(0.1, std, out=np.zeros_like(std), where=std > 1e-12)
    machine = LinearSVC(C=1.0, class_weight="balanced", dual="auto", max_iter=5000, random_state=0)
    return np.asarray(np.abs(machine.fit(scaled, positive).coef_[0]), np.float64)
