"""How sure a score is: intervals of scores and of their differences, from groups of samples.

Samples of one group (a document, a project, a person) are not independent, so draws weigh groups as wholes. With few
groups intervals are wide; with fewer than two there are none. Decision note 0107 says why this method, and what its
coverage is. Tests of a layer's best neuron are in `permutations`.

Long because intervals of MCC, of R² and of differences rest on the same draws and the same prior mass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from sparse_probing.errors import DataError, InputError
from sparse_probing.probes.data import ProbeData
from sparse_probing.probes.labelling import Labels, as_positive
from sparse_probing.probes.metrics import mcc, threshold_metrics
from sparse_probing.probes.single.neuron_scores import NeuronScores
from sparse_probing.schemas import THRESHOLD_METRICS

Floats = NDArray[np.float64]

N_BOOTSTRAP = 1000
# Shape of the weight of a pseudo-group: half an observation, as in Jeffreys' prior of a share.
PRIOR = 0.5
# Probes whose draws are in memory at once.
_PROBES_AT_ONCE = 256
# Weights that are kept between calls: 32 MiB.
_KEPT_WEIGHTS = 4 * 2**20


def score_interval(
    positive: Labels,
    predicted: ArrayLike,
    groups: ArrayLike,
    *,
    metric: str = "mcc",
    level: float = 0.95,
    rng: np.random.Generator | int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> tuple[Floats, Floats]:
    """Interval of a threshold metric over groups, for several probes on the same samples.

    A Bayesian bootstrap (Rubin 1981) over groups with prior mass on one side. Each draw gives every group a weight
    Gamma(1); recall and specificity are weighted shares of correct rows, and the metric follows from these two at the
    samples' own share of positives. For the lower limit each class also holds a pseudo-group that is all wrong, for the
    upper one a pseudo-group that is all right: of weight Gamma(½), of size Σm²/Σm over the class's groups of m rows. So the
    limits of a probe without a single error depend on the number of groups, and an interval never has width zero. All draws
    of all probes are one matrix product.

    Parameters
    ----------
    positive:
        (n_samples,) labels of two classes, none missing: booleans, 0 and 1, or -1 and +1.
    predicted:
        (n_samples, n_probes) or (n_samples,) bool predictions.
    groups:
        (n_samples,).
    metric:
        One of `schemas.THRESHOLD_METRICS`.
    level:
        Coverage asked for, between 0 and 1.

    Returns
    -------
    low, high:
        (n_probes,) each; NaN with fewer than two groups, one class only, or no draws.

    Raises
    ------
    DataError
        If shapes do not fit.
    InputError
        If the metric is unknown.

    Examples
    --------
    A probe without an error on 20 documents of 5 rows each:

    >>> import numpy as np
    >>> from sparse_probing import score_interval
    >>> y = np.arange(100) % 2 == 0
    >>> low, high = score_interval(y, y, np.arange(100) // 5, metric="mcc")
    >>> bool(0.5 < low[0] < high[0]), float(high[0])
    (True, 1.0)
    """
    judge = _judge(metric)
    shares = _Shares.of(positive, predicted, groups)
    draws = _Draws.of(shares.sizes, n_bootstrap, rng)
    if draws is None:
        return _unknown(shares.n_probes)

    def limits(probes: slice) -> tuple[Floats, Floats]:
        return _limits(
            [judge(shares.drawn(draws, probes, right=right), shares.totals) for right in (False, True)], level
        )

    observed = judge(shares.observed(), shares.totals)
    return _around(observed, _in_parts(limits, shares.n_probes))


def difference_interval(
    positive: Labels,
    predicted: ArrayLike,
    other: ArrayLike,
    groups: ArrayLike,
    *,
    other_positive: Labels | None = None,
    metric: str = "mcc",
    level: float = 0.95,
    rng: np.random.Generator | int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> tuple[Floats, Floats]:
    """Interval of the score of probes less that of another, on the same samples and by the same draws.

    As `score_interval`; for the lower limit the pseudo-groups are wrong for the probe and right for the other, for the
    upper one the other way round. Where it lies above 0 the probe is better. Two probes that never differ have an interval
    around 0 whose width tells what difference so many groups could have hidden.

    Parameters
    ----------
    predicted, other:
        (n_samples, n_probes) or (n_samples,) bool predictions each; one of them may have one column only.
    other_positive:
        (n_samples,) what the other is judged by, where that is something else: labels that were shuffled.

    Returns
    -------
    low, high:
        (n_probes,) each; NaN as in `score_interval`.

    Raises
    ------
    DataError, InputError
        As in `score_interval`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparse_probing import difference_interval
    >>> y = np.arange(100) % 2 == 0
    >>> chance = np.arange(100) % 3 == 0
    >>> low, high = difference_interval(y, y, chance, np.arange(100) // 5)
    >>> bool(low[0] > 0)
    True
    """
    judge = _judge(metric)
    one = _Shares.of(positive, predicted, groups)
    two = _Shares.of(positive if other_positive is None else other_positive, other, groups)
    n_probes = max(one.n_probes, two.n_probes)
    if one.n_probes not in (1, n_probes) or two.n_probes not in (1, n_probes):
        raise DataError(f"{one.n_probes} probes beside {two.n_probes} others; expected as many, or one.")
    draws = _Draws.of(one.sizes, n_bootstrap, rng)
    if draws is None or not two.totals.all():
        return _unknown(n_probes)

    def drawn(shares: _Shares, probes: slice, right: bool) -> Floats:
        return judge(shares.drawn(draws, probes if shares.n_probes > 1 else slice(0, 1), right=right), shares.totals)

    def limits(probes: slice) -> tuple[Floats, Floats]:
        return _limits([drawn(one, probes, right) - drawn(two, probes, not right) for right in (False, True)], level)

    observed = judge(one.observed(), one.totals) - judge(two.observed(), two.totals)
    return _around(observed, _in_parts(limits, n_probes))


def _drawn(n_groups: int, n_classes: int, n_draws: int, rng: np.random.Generator | int) -> tuple[Floats, Floats]:
    """(n_draws, n_groups) weights of groups and (n_draws, n_classes) of pseudo-groups."""
    generator = np.random.default_rng(rng)
    weights = generator.standard_exponential((n_draws, n_groups))
    return weights, generator.gamma(PRIOR, size=(n_draws, n_classes))


# The thousands of fits of a run share their draws: making them anew each time would cost more than the fits.
_drawn_once = functools.lru_cache(maxsize=8)(_drawn)


def _judge(metric: str) -> Callable[[Floats, Floats], Floats]:
    """A function of (2, ...) recall and specificity and the (2,) rows of the classes."""
    if metric not in THRESHOLD_METRICS:
        raise InputError(f"Metric {metric!r}; expected one of {', '.join(THRESHOLD_METRICS)}.")

    def value(shares: Floats, totals: Floats) -> Floats:
        (recall, specificity), (n_positive, n_negative) = shares, totals
        tp, tn = n_positive * recall, n_negative * specificity
        # Most intervals are of this one, and the others would cost ten times its time.
        if metric == "mcc":
            return mcc(tp, n_negative - tn, n_positive - tp, tn)
        return threshold_metrics(tp, n_negative - tn, n_positive - tp, tn)[metric]

    return value


@dataclass(frozen=True, eq=False)
class _Draws:
    """Weights of one Bayesian bootstrap: (n_draws, n_groups), and (n_draws, n_classes) of a row of the pseudo-groups."""

    weights: Floats
    prior: Floats

    @classmethod
    def of(cls, sizes: Floats, n_draws: int, rng: np.random.Generator | int) -> _Draws | None:
        """Draws over groups of (n_classes, n_groups) rows; None where there can be no interval."""
        if sizes.shape[1] < 2 or n_draws < 1 or not sizes.any(axis=1).all():
            return None
        kept = n_draws * sizes.shape[1] <= _KEPT_WEIGHTS and not isinstance(rng, np.random.Generator)
        draw = _drawn_once if kept else _drawn
        return cls(*draw(sizes.shape[1], len(sizes), n_draws, rng))

    def pseudo(self, sizes: Floats) -> Floats:
        """(n_draws, n_classes) weighted rows of pseudo-groups beside (n_classes, n_groups) rows: each as large as its class's."""
        return np.asarray(self.prior * ((sizes**2).sum(axis=1) / sizes.sum(axis=1)))


@dataclass(frozen=True, eq=False)
class _Shares:
    """Rows of each class (positive, negative) by group, and how many of them each probe has right.

    sizes: (2, n_groups); right: (2, n_groups, n_probes).
    """

    sizes: Floats
    right: Floats

    @classmethod
    def of(cls, positive: Labels, predicted: ArrayLike, groups: ArrayLike) -> _Shares:
        truth, guess = as_positive(positive), np.asarray(predicted, bool)
        guess = guess[:, None] if guess.ndim == 1 else guess
        _, group = np.unique(np.asarray(groups), return_inverse=True)
        if not (len(truth) == len(guess) == len(group)):
            raise DataError(
                f"{len(truth)} labels, {len(guess)} predictions and {len(group)} groups; expected one each."
            )
        classes = np.stack([truth, ~truth])[:, :, None]
        right = classes & (guess == truth[:, None])
        return cls(_by_group(classes, group)[:, :, 0], _by_group(right, group))

    @property
    def n_probes(self) -> int:
        return int(self.right.shape[2])

    @property
    def totals(self) -> Floats:
        """(2,) rows of the classes."""
        return np.asarray(self.sizes.sum(axis=1))

    def observed(self) -> Floats:
        """(2, n_probes) recall and specificity."""
        return np.asarray(self.right.sum(axis=1) / self.totals[:, None])

    def drawn(self, draws: _Draws, probes: slice, *, right: bool) -> Floats:
        """(2, n_draws, n_probes) recall and specificity of each draw, the pseudo-groups right or wrong."""
        pseudo = draws.pseudo(self.sizes)
        rows = (draws.weights @ self.sizes.T + pseudo).T[:, :, None]
        found = np.matmul(draws.weights, self.right[:, :, probes])
        if right:
            found += pseudo.T[:, :, None]
        return np.asarray(np.minimum(found / rows, 1.0))


def r2_interval(
    target: ArrayLike,
    predicted: ArrayLike,
    groups: ArrayLike,
    *,
    level: float = 0.95,
    rng: np.random.Generator | int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> tuple[float, float]:
    """Interval of a regression's R² over groups, by the draws of `score_interval`.

    Of each draw, 1 - R² is the weighted mean squared error over the weighted variance of the targets. For the lower limit
    a pseudo-group has the mean squared error of the worst group, for the upper one the mean square of the targets of the
    most distant group. Distances on the scale of log(1 - R²) are stretched by Student's quantile of (groups - 1) degrees of
    freedom over the normal one, since the spread of squares is itself estimated.

    Parameters
    ----------
    target, predicted, groups:
        (n_samples,) each.

    Returns
    -------
    low, high: NaN with fewer than two groups, targets that do not vary, or no draws.

    Raises
    ------
    DataError
        If shapes do not fit.
    """
    squares = _Squares.of(target, groups, predicted)
    draws = _Draws.of(squares.rows, n_bootstrap, rng)
    if draws is None or not squares.vary:
        return float("nan"), float("nan")
    observed = np.log(squares.error / squares.spread)
    worst = np.log(squares.drawn_error(draws, worst=True) / squares.drawn_spread(draws))
    best = np.log(squares.drawn_error(draws) / squares.drawn_spread(draws, widest=True))
    stretch = _stretch(squares.n_groups, level)
    low = 1 - np.exp(observed + stretch * (np.quantile(worst, (1 + level) / 2) - observed))
    high = 1 - np.exp(observed + stretch * (np.quantile(best, (1 - level) / 2) - observed))
    score = 1 - np.exp(observed)
    return float(min(low, score)), float(max(high, score))


def r2_difference_interval(
    target: ArrayLike,
    predicted: ArrayLike,
    other: ArrayLike,
    groups: ArrayLike,
    *,
    other_target: ArrayLike | None = None,
    level: float = 0.95,
    rng: np.random.Generator | int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> tuple[float, float]:
    """Interval of the R² of a regression less that of another, on the same samples and by the same draws.

    For the lower limit the pseudo-group has the one's errors of its worst group and none of the other's, for the upper one
    the other way round; distances are stretched as in `r2_interval`.

    Parameters
    ----------
    target, predicted, other, groups:
        (n_samples,) each.
    other_target:
        (n_samples,) what the other is judged by, where that is something else: targets that were shuffled.

    Returns
    -------
    low, high: NaN as in `r2_interval`.

    Raises
    ------
    DataError
        If shapes do not fit.
    """
    one = _Squares.of(target, groups, predicted)
    two = _Squares.of(target if other_target is None else other_target, groups, other)
    draws = _Draws.of(one.rows, n_bootstrap, rng)
    if draws is None or not one.vary or not two.vary:
        return float("nan"), float("nan")

    def loss(squares: _Squares, worst: bool) -> Floats:
        return squares.drawn_error(draws, worst=worst) / squares.drawn_spread(draws)

    stretch = _stretch(one.n_groups, level)
    observed = two.error / two.spread - one.error / one.spread
    low = observed + stretch * (np.quantile(loss(two, False) - loss(one, True), (1 - level) / 2) - observed)
    high = observed + stretch * (np.quantile(loss(two, True) - loss(one, False), (1 + level) / 2) - observed)
    return float(min(low, observed)), float(max(high, observed))


@dataclass(frozen=True, eq=False)
class _Squares:
    """Sums over each group, (n_groups,) each: rows (as (1, n_groups)), targets about their mean, their squares, and errors'."""

    rows: Floats
    target: Floats
    square: Floats
    errors: Floats

    @classmethod
    def of(cls, target: ArrayLike, groups: ArrayLike, predicted: ArrayLike) -> _Squares:
        truth, guess = np.asarray(target, np.float64), np.asarray(predicted, np.float64)
        _, group = np.unique(np.asarray(groups), return_inverse=True)
        if not (truth.shape == guess.shape == group.shape):
            raise DataError(
                f"{truth.shape} targets, {guess.shape} predictions and {group.shape} groups; one each expected."
            )
        # About the mean of all, so that the spread of a draw is no difference of large numbers.
        centred = truth - truth.mean() if len(truth) else truth
        parts = [np.ones_like(truth), centred, centred**2, (truth - guess) ** 2]
        rows, targets, squares, errors = _by_group(np.stack(parts)[:, :, None], group)[:, :, 0]
        return cls(rows[None], targets, squares, errors)

    @property
    def n_groups(self) -> int:
        return int(self.rows.shape[1])

    @property
    def spread(self) -> float:
        """Variance of the targets."""
        return float(self.square.sum() / self.rows.sum())

    @property
    def vary(self) -> bool:
        """Whether there is more than one target."""
        return bool(self.square.sum() > 0)

    @property
    def error(self) -> float:
        """Mean squared error, not below what a float can tell from none."""
        return max(float(self.errors.sum() / self.rows.sum()), np.finfo(float).eps * self.spread)

    def drawn_error(self, draws: _Draws, *, worst: bool = False) -> Floats:
        """(n_draws,) mean squared errors; the pseudo-group has that of the worst group, or none."""
        rows, pseudo = self.rows[0], draws.pseudo(self.rows)[:, 0]
        extra = float((self.errors / rows).max()) if worst else 0.0
        found = (draws.weights @ self.errors + pseudo * extra) / (draws.weights @ rows + pseudo)
        return np.asarray(np.maximum(found, np.finfo(float).eps * self.spread))

    def drawn_spread(self, draws: _Draws, *, widest: bool = False) -> Floats:
        """(n_draws,) variances of the targets; the pseudo-group's lie as far out as those of any group, or at the mean."""
        rows, pseudo = self.rows[0], draws.pseudo(self.rows)[:, 0]
        extra = float((self.square / rows).max()) if widest else 0.0
        n = draws.weights @ rows
        inside = draws.weights @ self.square - (draws.weights @ self.target) ** 2 / n
        return np.asarray((inside + pseudo * extra) / (n + pseudo))


def _stretch(n_groups: int, level: float) -> float:
    """Student's quantile over the normal one."""
    return float(t.ppf((1 + level) / 2, n_groups - 1) / norm.ppf((1 + level) / 2))


def _by_group(parts: NDArray[np.generic], group: NDArray[np.intp]) -> Floats:
    """Sums of (n_parts, n_samples, n_probes) quantities over each group: (n_parts, n_groups, n_probes)."""
    if not len(group):
        return np.zeros((parts.shape[0], 0, parts.shape[2]))
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(int(group.max()) + 1))
    return np.stack([np.add.reduceat(part[order].astype(np.float64), starts, axis=0) for part in parts])


def _limits(sides: Sequence[Floats], level: float) -> tuple[Floats, Floats]:
    """(n_probes,) limits from (n_draws, n_probes) draws with pseudo-groups wrong, and right.

    The lower limit comes from the first and the upper one from the second, but where a metric falls as recall rises: that of
    Fowlkes and Mallows does, for probes that say the opposite.
    """
    tails = [np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0) for draws in sides]
    return np.minimum(tails[0][0], tails[1][0]), np.maximum(tails[0][1], tails[1][1])


def _in_parts(limits: Callable[[slice], tuple[Floats, Floats]], n_probes: int) -> tuple[Floats, Floats]:
    """Limits of all probes, some at a time, so that their draws fit into memory."""
    found = [limits(slice(start, start + _PROBES_AT_ONCE)) for start in range(0, n_probes, _PROBES_AT_ONCE)]
    if not found:
        return _unknown(0)
    low, high = (np.concatenate(part) for part in zip(*found, strict=True))
    return low, high


def _around(observed: Floats, limits: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Limits that hold the observed score too, which a metric that falls with recall may lie outside of."""
    return np.minimum(limits[0], observed), np.maximum(limits[1], observed)


def _unknown(n_probes: int) -> tuple[Floats, Floats]:
    return np.full(n_probes, np.nan), np.full(n_probes, np.nan)


def neuron_predictions(
    scores: NeuronScores, data: ProbeData, neurons: ArrayLike, *, part: str = "test"
) -> NDArray[np.bool_]:
    """(n_rows, n_shortlist) what the fitted probes of some neurons predict on the rows of a split.

    Parameters
    ----------
    scores:
        What `score_neurons` gave for the arrays behind `data`.
    neurons:
        (n_shortlist,) neuron numbers.
    part:
        ``train``, ``validation`` or ``test``.
    """
    chosen = np.asarray(neurons, np.intp)
    values = data.values(data.rows(part), chosen)
    return np.asarray(scores.intercept[chosen] + scores.coef[chosen] * values > 0)


def neuron_intervals(
    scores: NeuronScores,
    data: ProbeData,
    neurons: ArrayLike,
    *,
    part: str = "test",
    n_bootstrap: int = N_BOOTSTRAP,
    level: float = 0.95,
    rng: np.random.Generator | int = 0,
) -> tuple[Floats, Floats]:
    """Intervals of the MCC of some neurons' fitted probes on one split (see `score_interval`).

    Parameters
    ----------
    scores, data, neurons, part:
        As in `neuron_predictions`.

    Returns
    -------
    low, high: (n_shortlist,) each.
    """
    rows = data.rows(part)
    predicted = neuron_predictions(scores, data, neurons, part=part)
    return score_interval(
        data.positive[rows], predicted, data.groups[rows], n_bootstrap=n_bootstrap, level=level, rng=rng
    )
