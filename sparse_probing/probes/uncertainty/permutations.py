"""The permutation null of a layer's best neuron: labels are permuted so that the dependence within groups is kept.

Samples of one group (a document, a project, a person) are not independent, so groups are exchanged as wholes, or labels
within them. Rates over many features and layers are in `false_discoveries`, intervals of scores in `uncertainty`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import betabinom

from sparse_probing.errors import DataError
from sparse_probing.probes.data import check_classes, check_labels
from sparse_probing.probes.labelling import Labels, SignedLabels, as_signs
from sparse_probing.probes.single.counts import N_LEVELS, LabelColumns, count_tables, quantise

Floats = NDArray[np.float64]

# A share of permutations, above the 0.05 that decisions are made at: below it, more are drawn.
NEAR = 0.1
# All permutations of a feature whose decision was near, in units of those asked for.
TIMES_MORE = 10


@dataclass(frozen=True, eq=False)
class LabelPermutations:
    """Permuted training labels of several features, made once for all layers of a model.

    Attributes
    ----------
    rows:
        (n_train,) rows of the arrays they were made from: train, labelled by at least one feature.
    contrasts:
        One array per feature, the true labels first: (n_units, 1 + n_permutations) float32. Its product with the rows'
        (or groups' summed) ranks is the difference of class means in units of its standard error under no difference.
    units:
        One array or None per feature: (n_train,) group of each row where whole groups exchange labels, so that ranks are
        summed by group first; None where labels are exchanged between rows of a group.
    kind:
        One word per feature: ``groups``, ``within_groups`` or ``mixed``.
    more:
        ``more(feature, block)``: contrasts of as many permutations again, without the true labels; other ones in each block.
    """

    rows: NDArray[np.intp]
    contrasts: tuple[NDArray[np.float32], ...]
    units: tuple[NDArray[np.intp] | None, ...]
    kind: tuple[str, ...]
    more: Callable[[int, int], NDArray[np.float32]]

    @property
    def n_permutations(self) -> int:
        """Permutations beside the true labels."""
        return self.contrasts[0].shape[1] - 1 if self.contrasts else 0


@dataclass(frozen=True, eq=False)
class MaxNull:
    """Permutation test of every neuron against the maximum over the layer.

    Attributes
    ----------
    p_value:
        (n_features, n_neurons): (1 + permutations whose largest statistic reaches the neuron's) / (1 + permutations), or
        `sequential_p_value` where there were more. Already adjusted for the layer's number of neurons (Westfall and
        Young's single step). Never below 1 / (1 + permutations): that value stands for *at most*.
    statistic:
        (n_features, n_neurons) difference of the classes' mean ranks over its standard error without grouping.
    null_maximum:
        (n_features, n_permutations) largest |statistic| over neurons in each permutation.
    n_permutations:
        (n_features,) how many there were; more where a decision was near.
    """

    p_value: Floats
    statistic: Floats
    null_maximum: Floats
    n_permutations: NDArray[np.int64]


def permute_labels(
    Y: Labels,
    groups: ArrayLike | None,
    *,
    labelled: ArrayLike | None = None,
    split: ArrayLike,
    n_permutations: int = 200,
    max_rows: int | None = None,
    rng: np.random.Generator | int = 0,
) -> LabelPermutations:
    """Permute training labels so that their distribution stays the same if the feature is unrelated to the activations.

    *Whole groups*: groups whose labelled rows all agree (a document's language) exchange labels with one another; rows of
    a group stay together, so their dependence stays too. *Within groups*: in a group with both labels (a document's
    tokens) labels are exchanged between its rows; effects of the document as a whole remain in both the
    statistic and its null. A feature with groups of both kinds does both at once. With few groups the number of distinct
    permutations is small and p-values cannot be: nine groups in three threes have 84 ways to choose three.

    Parameters
    ----------
    Y:
        (n_samples, n_features) or (n_samples,), coded as in `single.score_neurons`.
    labelled:
        (n_samples,) or Y's shape, bool: which labels count.
    groups:
        (n_samples,); each sample its own group if None.
    max_rows:
        Training rows to use at most, drawn at random; all if None. The test stays valid on fewer rows and loses power; its
        cost is proportional to them wherever labels vary inside groups.

    Raises
    ------
    DataError
        If shapes or labels do not fit, or train lacks a class of some feature.
    """
    signs = as_signs(Y, labelled)
    labels, codes = check_labels(SignedLabels(signs), split, signs.shape[0])
    check_classes(labels, codes)
    rows = np.flatnonzero((codes == 0) & (labels != 0).any(axis=1))
    names = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if len(names) != len(labels):
        raise DataError(f"{len(labels)} labels with {len(names)} groups; expected one each.")
    generator = np.random.default_rng(rng)
    if max_rows is not None and max_rows < len(rows):
        rows = np.sort(generator.choice(rows, max_rows, replace=False))
        check_classes(labels[rows], codes[rows])
    group = np.unique(names[rows], return_inverse=True)[1].reshape(-1)
    seeds = generator.integers(0, 2**63, size=2)
    # Features share their permutations, so that features labelled alike are exchanged alike.
    built = [_permute_one(labels[rows, f], group, n_permutations, seeds) for f in range(labels.shape[1])]
    chosen = labels[rows]

    def more(feature: int, block: int) -> NDArray[np.float32]:
        return _permute_one(chosen[:, feature], group, n_permutations, seeds, block=block)[0][:, 1:]

    return LabelPermutations(
        more=more,
        rows=rows,
        contrasts=tuple(contrast for contrast, _, _ in built),
        units=tuple(unit for _, unit, _ in built),
        kind=tuple(kind for _, _, kind in built),
    )


def _permute_one(
    label: NDArray[np.int8], group: NDArray[np.intp], n_permutations: int, seeds: NDArray[np.int64], block: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.intp] | None, str]:
    n_groups = int(group.max()) + 1
    n_labelled = np.bincount(group, label != 0, minlength=n_groups)
    n_positive = np.bincount(group, label > 0, minlength=n_groups)
    whole = np.flatnonzero((n_labelled > 0) & ((n_positive == 0) | (n_positive == n_labelled)))
    mixed = (n_positive > 0) & (n_positive < n_labelled)
    by_group, by_row = (np.random.default_rng([int(seed), block] if block else seed) for seed in seeds)
    group_label = np.zeros((n_groups, 1 + n_permutations), np.int8)
    truth = np.where(n_positive > 0, 1, -1).astype(np.int8)[whole]
    group_label[whole, 0] = truth
    for column in range(1, 1 + n_permutations):
        group_label[whole, column] = truth[by_group.permutation(len(whole))]
    if not mixed.any():
        sizes = n_labelled.astype(np.float64)
        return _contrast(group_label, sizes), group, "groups"
    table = np.zeros((len(label), 1 + n_permutations), np.int8)
    labelled = label != 0
    table[labelled] = group_label[group[labelled]]
    inside = np.flatnonzero(labelled & mixed[group])
    inside = inside[np.argsort(group[inside], kind="stable")]
    place = group[inside].astype(np.float64)
    table[inside, 0] = label[inside]
    for column in range(1, 1 + n_permutations):
        table[inside, column] = label[inside[np.argsort(place + by_row.random(len(inside)))]]
    return _contrast(table, np.ones(len(label))), None, "mixed" if len(whole) else "within_groups"


def _contrast(labels: NDArray[np.int8], sizes: Floats) -> NDArray[np.float32]:
    """Columns c with c·r = (mean rank of positives − of negatives) / √(1/n₊ + 1/n₋); r sums ranks over a unit's rows."""
    n_positive = sizes @ (labels > 0)
    n_negative = sizes @ (labels < 0)
    unit = np.sqrt(1.0 / n_positive + 1.0 / n_negative)
    out = np.where(labels > 0, 1.0 / (n_positive * unit), 0.0) - np.where(labels < 0, 1.0 / (n_negative * unit), 0.0)
    return out.astype(np.float32)


def max_null(
    X: ArrayLike,
    Y: Labels | None = None,
    groups: ArrayLike | None = None,
    *,
    labelled: ArrayLike | None = None,
    split: ArrayLike | None = None,
    n_permutations: int = 200,
    rng: np.random.Generator | int = 0,
    permutations: LabelPermutations | None = None,
) -> MaxNull:
    """Permutation null of the maximum over a layer's neurons, for every feature.

    The statistic is the difference of the classes' mean ranks (training rows, ties at their middle, each neuron's ranks
    to unit variance): the rank-sum test's, up to its standard error. All permutations of all features are one matrix
    product with the ranks, which are shared.

    Where the decision about a feature is near after the permutations asked for (its best neuron is reached by one, but by
    less than `NEAR` of them), nine times as many follow; `sequential_p_value` keeps the error rate.

    Parameters
    ----------
    X:
        (n_samples, n_neurons) uint8 levels or floats (quantised to 256 levels). Ranks need no offset or scale.
    Y, groups, labelled, split, n_permutations, rng:
        As in `permute_labels`; not used where `permutations` is given.
    permutations:
        Made once by `permute_labels` for all layers.

    Raises
    ------
    DataError
        As `permute_labels`.
    """
    table = np.asarray(X)
    if permutations is None:
        if Y is None or split is None:
            raise DataError("max_null got neither labels and split nor permutations.", remedy="Pass Y and split.")
        permutations = permute_labels(Y, groups, labelled=labelled, split=split, n_permutations=n_permutations, rng=rng)
    ranks = _ranks(table, permutations.rows)
    n_features, n_neurons, n_draws = len(permutations.contrasts), table.shape[1], permutations.n_permutations
    statistic = np.empty((n_features, n_neurons))
    p_value = np.empty((n_features, n_neurons))
    null = np.zeros((n_features, n_draws))
    drawn = np.full(n_features, n_draws)
    summed: dict[int, NDArray[np.float32]] = {}
    for feature, (contrast, unit) in enumerate(zip(permutations.contrasts, permutations.units, strict=True)):
        rows = ranks
        if unit is not None:
            if id(unit) not in summed:
                summed[id(unit)] = _sum_by(ranks, unit, contrast.shape[0])
            rows = summed[id(unit)]
        product = contrast.T @ rows
        statistic[feature] = product[0]
        null[feature] = _maxima(product[1:])
        strength = np.abs(statistic[feature])
        reached = _count_at_least(null[feature], strength)
        p_value[feature] = (1.0 + reached) / (1.0 + n_draws)
        if 1 <= reached.min() < _n_near(n_draws):
            again = sum(
                _count_at_least(_maxima(permutations.more(feature, block).T @ rows), strength)
                for block in range(1, TIMES_MORE)
            )
            drawn[feature] = TIMES_MORE * n_draws
            p_value[feature] = sequential_p_value(reached, reached + again, n_draws)
    return MaxNull(p_value, statistic, null, drawn)


def _maxima(product: NDArray[np.float32]) -> Floats:
    """(n_permutations,) largest absolute value over neurons; two passes without an absolute copy of the largest array here."""
    if not len(product):
        return np.zeros(0)
    return np.asarray(np.maximum(product.max(axis=1), -product.min(axis=1)), np.float64)


def _n_near(n_permutations: int) -> int:
    """From so many permutations that reach a statistic on, its p-value is not near any decision."""
    return max(2, round(NEAR * (n_permutations + 1)))


def sequential_p_value(first: ArrayLike, all_together: ArrayLike, n_permutations: int) -> Floats:
    """P-values of statistics for which permutations were drawn in two stages.

    The first stage ends the test where none of its permutations reaches the best statistic, or `NEAR` of them do; else the
    second follows. Outcomes are ordered by stage, then by their count, and the p-value is the probability of all that are
    at least as extreme. Under the null hypothesis the true statistic is as likely in every place among the permuted ones:
    so what follows c of n has a beta-binomial law, and the p-value is exact whenever the first stage ends (the argument of
    Besag and Clifford 1991, with the ordering of group-sequential tests).

    Parameters
    ----------
    first, all_together:
        (n,) permutations that reach the statistic, in the first stage and in both.
    n_permutations:
        Of the first stage; both have `TIMES_MORE` as many.
    """
    begun, ended = np.asarray(first, np.int64), np.asarray(all_together, np.int64)
    one_stage = (begun == 0) | (begun >= _n_near(n_permutations))
    return np.where(one_stage, (1.0 + begun) / (1.0 + n_permutations), _of_two_stages(n_permutations)[ended])


@functools.cache
def _of_two_stages(n_permutations: int) -> Floats:
    """P-values by how many of all permutations reach the statistic, where the second stage followed."""
    n_second = (TIMES_MORE - 1) * n_permutations
    law = np.zeros(TIMES_MORE * n_permutations + 1)
    for begun in range(1, _n_near(n_permutations)):
        law[begun : begun + n_second + 1] += betabinom.pmf(
            np.arange(n_second + 1), n_second, begun + 1, n_permutations - begun + 1
        )
    return np.asarray((1.0 + np.cumsum(law)) / (1.0 + n_permutations))


def _ranks(table: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """(n_rows, n_neurons) middle ranks of the levels among `rows`, each neuron to mean 0 and variance 1 (0 if constant)."""
    codes = table[rows]
    if codes.dtype != np.uint8:
        codes, _, _ = quantise(codes)
    out = np.empty(codes.shape, np.float32)
    columns = LabelColumns((np.arange(len(rows)),), ((slice(0, len(rows)),),), (0,), (0,))
    for start in range(0, codes.shape[1], 256):
        neurons = slice(start, min(start + 256, codes.shape[1]))
        counted = count_tables(codes, columns, neurons)[0]
        count = counted[0].astype(np.float64)
        middle = np.cumsum(count, axis=1) - 0.5 * count - 0.5 * len(rows)
        spread = np.sqrt(np.einsum("ij,ij->i", count, middle**2) / len(rows))
        middle *= np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)[:, None]
        flat = codes[:, neurons] + np.arange(count.shape[0], dtype=np.int32) * N_LEVELS
        out[:, neurons] = middle.astype(np.float32).ravel().take(flat)
    return out


def _sum_by(ranks: NDArray[np.float32], unit: NDArray[np.intp], n_units: int) -> NDArray[np.float32]:
    """Sums of the rows of each unit, (n_units, n_neurons)."""
    if n_units == len(ranks) and np.array_equal(unit, np.arange(n_units)):
        return ranks
    order = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[order], np.arange(n_units))
    return np.add.reduceat(ranks[order], starts, axis=0)


def _count_at_least(maxima: Floats, statistic: Floats) -> NDArray[np.int64]:
    """(n_neurons,) how many of the null maxima reach each statistic, rounding errors aside."""
    ordered = np.sort(maxima)
    # float32 sums in another order: a permutation that repeats the true labels must count as reaching them.
    return np.asarray(len(ordered) - np.searchsorted(ordered, statistic * (1 - 1e-5), side="left"))
