"""Baselines of every result: prevalence, shuffled labels, a random rotation, token identity alone.

(The dense probe, the fifth, is in `dense`.) Each returns a `ProbeFit` whose `variant` names it. The baselines that choose
a neuron choose it exactly as the real probe does: the best on train, by the same criterion.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError
from sparse_probing.probes.data import ProbeData
from sparse_probing.probes.experiments.fitting import evaluate, fit_support
from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.ranking import rank_neurons
from sparse_probing.probes.results import ProbeFit
from sparse_probing.probes.uncertainty.permutations import permute_labels
from sparse_probing.schemas import SPLITS

METHOD = "baseline"


def prevalence_baseline(data: ProbeData, *, n_bootstrap: int = 0) -> ProbeFit:
    """No neuron at all: always positive. Its F1 is 2p/(1 + p), its precision p, its MCC 0."""
    judged = evaluate(data, np.ones(len(data.positive)), n_bootstrap)
    return ProbeFit(
        method=METHOD,
        variant="prevalence",
        k=0,
        n_candidates=0,
        status="ok",
        converged=True,
        seconds=0.0,
        message="always positive",
        **judged,
        intercept=1.0,
    )


def shuffled_labels_baseline(
    data: ProbeData,
    *,
    ranking: str = "mean_dif",
    k: int = 1,
    rng: np.random.Generator | int = 0,
    n_bootstrap: int = 0,
) -> ProbeFit:
    """The best k neurons for labels shuffled as in `permutations.permute_labels`, within each split.

    Train shows what selection alone achieves; test should show nothing.
    """
    generator = np.random.default_rng(rng)
    positive = data.positive.copy()
    for code in range(len(SPLITS)):
        rows = np.flatnonzero(data.split == code)
        signs = data.signs[rows]
        if len(rows) == 0 or np.ptp(signs) == 0:
            continue
        shuffled = permute_labels(
            SignedLabels(signs), data.groups[rows], split=np.zeros(len(rows), np.int8), n_permutations=1, rng=generator
        )
        unit = shuffled.units[0]
        label = shuffled.contrasts[0][:, 1] > 0
        positive[rows] = label if unit is None else label[unit]
    changed = data.with_labels(positive)
    order = rank_neurons(changed, ranking, rng=generator)
    fit, _ = fit_support(
        changed,
        order[:k],
        method=METHOD,
        k=min(k, data.n_neurons),
        n_candidates=data.n_neurons,
        variant="shuffled_labels",
        ranking=ranking,
        n_bootstrap=n_bootstrap,
    )
    return replace(fit, test_truth=positive[data.rows("test")])


def random_rotation(n_neurons: int, rng: np.random.Generator | int = 0) -> NDArray[np.float32]:
    """(n_neurons, n_neurons) orthogonal matrix, uniform over rotations and reflections (Stewart 1980; Mezzadri 2007)."""
    gaussian = np.random.default_rng(rng).standard_normal((n_neurons, n_neurons), dtype=np.float32)
    orthogonal, triangular = np.linalg.qr(gaussian)
    return np.asarray(orthogonal * np.sign(np.diag(triangular)), np.float32)


def rotate(data: ProbeData, rotation: NDArray[np.float32]) -> ProbeData:
    """The same rows in another basis: direction j is column j of the rotation. Activations are centred on train first."""
    values = data.values().astype(np.float32)
    values -= values[data.rows("train")].mean(axis=0)
    return data.with_columns(values @ rotation)


def rotation_baseline(
    data: ProbeData,
    *,
    rotation: NDArray[np.float32] | None = None,
    rotated: NDArray[np.float32] | None = None,
    ranking: str = "mean_dif",
    k: int = 1,
    rng: np.random.Generator | int = 0,
    n_bootstrap: int = 0,
) -> ProbeFit:
    """The best k directions of a random basis: the score that a basis without meaning reaches.

    Parameters
    ----------
    rotation:
        From `random_rotation`, to share it between features and layers.
    rotated:
        (n_rows, n_neurons) the data's rows in the random basis already; takes the place of `rotation`.
    """
    generator = np.random.default_rng(rng)
    if rotated is not None:
        changed = data.with_columns(rotated)
    else:
        changed = rotate(data, random_rotation(data.n_neurons, generator) if rotation is None else rotation)
    order = rank_neurons(changed, ranking, rng=generator)
    return fit_support(
        changed,
        order[:k],
        method=METHOD,
        k=min(k, data.n_neurons),
        n_candidates=data.n_neurons,
        variant="random_rotation",
        ranking=ranking,
        n_bootstrap=n_bootstrap,
    )[0]


def token_identity_baseline(
    data: ProbeData, token_ids: ArrayLike, *, smoothing: float = 1.0, n_bootstrap: int = 0
) -> ProbeFit:
    """Prediction from the token at the position alone: a lookup table of smoothed log-odds, fitted on train.

    A token's score is log((p_t + s) / (m_t + s)) with p and m its shares of the positive and the negative training rows,
    in rows of a balanced set of the same size; an unseen token scores 0 and counts as negative.

    Parameters
    ----------
    token_ids:
        (n_samples,) of the arrays that the data were prepared from.

    Raises
    ------
    DataError
        If there are fewer token ids than rows.
    """
    begun = time.perf_counter()
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or len(ids) <= data.row_ids.max(initial=-1):
        raise DataError(
            f"{ids.shape} token ids for rows up to {data.row_ids.max(initial=-1)}; expected one per row of activations."
        )
    names, token = np.unique(ids[data.row_ids], return_inverse=True)
    rows = data.rows("train")
    counts = np.stack(
        [np.bincount(token[rows], data.positive[rows] == wanted, minlength=len(names)) for wanted in (True, False)]
    )
    balanced = counts * (0.5 * len(rows) / counts.sum(axis=1, keepdims=True))
    table = np.log((balanced[0] + smoothing) / (balanced[1] + smoothing))
    seconds = time.perf_counter() - begun
    judged = evaluate(data, table[token], n_bootstrap)
    return ProbeFit(
        method=METHOD,
        variant="token_identity",
        k=0,
        n_candidates=int(np.count_nonzero(counts.sum(axis=0))),
        status="ok",
        converged=True,
        seconds=seconds,
        message="smoothed log-odds of each token on train",
        **judged,
    )


def feature_baselines(
    data: ProbeData,
    *,
    token_ids: ArrayLike | None = None,
    rotated: NDArray[np.float32] | None = None,
    ranking: str = "mean_dif",
    dense: bool = True,
    n_bootstrap: int = 0,
    rng: np.random.Generator | int = 0,
) -> list[ProbeFit]:
    """All baselines of one feature on one layer; token identity where `token_ids` (n_samples,) are given.

    `rotated` is X in a random basis, (n_samples, n_neurons), where features share it.
    """
    from sparse_probing.probes.experiments.dense import C_VALUES, fit_dense

    generator = np.random.default_rng(rng)
    fits = [
        prevalence_baseline(data, n_bootstrap=n_bootstrap),
        shuffled_labels_baseline(data, ranking=ranking, rng=generator, n_bootstrap=n_bootstrap),
        rotation_baseline(
            data,
            rotated=None if rotated is None else rotated[data.row_ids],
            ranking=ranking,
            rng=generator,
            n_bootstrap=n_bootstrap,
        ),
    ]
    if token_ids is not None:
        fits.append(token_identity_baseline(data, token_ids, n_bootstrap=n_bootstrap))
    if dense:
        fits.append(fit_dense(data, C_VALUES, n_bootstrap, variant="dense"))
    return fits
