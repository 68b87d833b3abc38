"""One feature's arrays in the shape that every method wants: labelled rows, their split, activations by column.

Arrays are checked here and nowhere else. Nothing is fitted here. `ProbeData` keeps stored levels as they are and converts
columns to activations on request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing import showing
from sparse_probing.errors import DataError
from sparse_probing.probes.labelling import Labels, SignedLabels, as_signs, row_mask
from sparse_probing.probes.splits import group_split
from sparse_probing.schemas import SPLITS

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class ProbeData:
    """Labelled rows of one feature.

    Attributes
    ----------
    X:
        (n_rows, n_neurons) uint8 levels or floats.
    positive:
        (n_rows,) bool.
    split:
        (n_rows,) int8: 0 train, 1 validation, 2 test.
    groups:
        (n_rows,) integer codes.
    offset, scale:
        (n_neurons,); activation = offset + scale * X. Zero and one for floats.
    row_ids:
        (n_rows,) row of each in the arrays that were passed in.
    """

    X: NDArray[Any]
    positive: NDArray[np.bool_]
    split: NDArray[np.int8]
    groups: NDArray[np.intp]
    offset: Floats
    scale: Floats
    row_ids: NDArray[np.intp]

    @property
    def n_neurons(self) -> int:
        """Number of neurons."""
        return int(self.X.shape[1])

    @property
    def signs(self) -> NDArray[np.int8]:
        """(n_rows,) +1 and -1."""
        return np.where(self.positive, 1, -1).astype(np.int8)

    def rows(self, split: str | int) -> NDArray[np.intp]:
        """Row numbers of a split, by name or code."""
        code = SPLITS.index(split) if isinstance(split, str) else split
        return np.flatnonzero(self.split == code)

    def values(self, rows: NDArray[np.intp] | slice = slice(None), neurons: ArrayLike | None = None) -> Floats:
        """Activations as float64, (len(rows), len(neurons)); all neurons if none are named."""
        if neurons is None:
            return self.X[rows].astype(np.float64) * self.scale + self.offset
        chosen = np.asarray(neurons, np.intp)
        block = self.X[rows][:, chosen] if len(chosen) > 64 else self.X[:, chosen][rows]
        return block.astype(np.float64) * self.scale[chosen] + self.offset[chosen]

    def with_labels(self, positive: NDArray[np.bool_]) -> Self:
        """The same rows under other labels."""
        return replace(self, positive=positive)

    def with_neurons(self, neurons: ArrayLike) -> Self:
        """The same rows with some neurons only, renumbered in the order given."""
        chosen = np.asarray(neurons, np.intp)
        return replace(self, X=self.X[:, chosen], offset=self.offset[chosen], scale=self.scale[chosen])

    def with_columns(self, X: NDArray[Any]) -> Self:
        """The same rows with other columns, as floats."""
        return replace(self, X=X, offset=np.zeros(X.shape[1]), scale=np.ones(X.shape[1]))

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        rows = [self.rows(split) for split in SPLITS]
        columns = {
            "split": list(SPLITS),
            "rows": [str(len(at)) for at in rows],
            "positive": [str(int(self.positive[at].sum())) for at in rows],
            "groups": [str(len(np.unique(self.groups[at]))) for at in rows],
        }
        return f"{type(self).__name__}: {len(self.positive)} rows, {self.n_neurons} neurons", columns, ""

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


def prepare(
    X: ArrayLike,
    y: Labels,
    groups: ArrayLike | None = None,
    *,
    labelled: ArrayLike | None = None,
    split: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    rng: np.random.Generator | int = 0,
) -> ProbeData:
    """Check one feature's arrays and keep its labelled rows: what `METHODS[name].fit` and the baselines take.

    Parameters
    ----------
    X, y, groups, labelled, split, offset, scale, rng:
        As in `score_neurons`.

    Returns
    -------
    ProbeData
        The labelled rows, with their split and groups.

    Raises
    ------
    DataError
        If shapes, labels or split codes do not fit, an activation is not finite, or train lacks one class.

    Examples
    --------
    >>> import numpy as np
    >>> from sparse_probing import METHODS, prepare
    >>> X = np.random.default_rng(0).standard_normal((300, 8))
    >>> data = prepare(X, X[:, 3] > 0)
    >>> data.n_neurons, len(data.rows("train"))
    (8, 180)
    >>> len(METHODS["heuristic_sparsity_sweep"].fit(data, k_values=[1, 2]))
    2
    """
    table = np.asarray(X)
    if table.ndim != 2 or table.shape[1] == 0:
        raise DataError(f"X has shape {table.shape}; expected (n_samples, n_neurons) with at least one neuron.")
    signs = as_signs(y, labelled)
    if signs.ndim != 1:
        raise DataError(f"y has shape {signs.shape}; expected (n_samples,).")
    if split is None:
        split = default_split(signs, groups, table.shape[0], rng)
    labels, codes = check_labels(SignedLabels(signs), split, table.shape[0])
    check_classes(labels, codes)
    kept = np.flatnonzero(labels[:, 0] != 0)
    names = np.arange(table.shape[0]) if groups is None else np.asarray(groups)
    if len(names) != table.shape[0]:
        raise DataError(f"{table.shape[0]} rows of activations with {len(names)} groups.", remedy="Give one per row.")
    low, step = check_quantisation(offset, scale, table.shape[1])
    if table.dtype != np.uint8:
        if not np.issubdtype(table.dtype, np.number) or np.iscomplexobj(table):
            raise DataError(f"X has type {table.dtype}; expected uint8 levels or floats.")
        if offset is not None or scale is not None:
            raise DataError(f"offset and scale given with X of type {table.dtype}; they belong to uint8 levels.")
        if not np.isfinite(table[kept]).all():
            bad = int(np.argmax(~np.isfinite(table[kept]).all(axis=0)))
            raise DataError(
                f"Neuron {bad} has activations that are not finite.", remedy="Extract again in a wider dtype."
            )
    whole = len(kept) == table.shape[0]
    return ProbeData(
        X=table if whole else table[kept],
        positive=labels[kept, 0] > 0,
        split=codes[kept],
        groups=np.unique(names[kept], return_inverse=True)[1].reshape(-1),
        offset=low,
        scale=step,
        row_ids=kept,
    )


@dataclass(frozen=True, eq=False, repr=False)
class TargetData(ProbeData):
    """Rows with a target. `positive` marks targets above the training median, for criteria that need classes."""

    target: Floats


def prepare_targets(
    X: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    labelled: ArrayLike | None = None,
    split: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    rng: np.random.Generator | int = 0,
) -> TargetData:
    """Check a regression feature's arrays and keep the rows that have a target: not NaN, and True in `labelled`.

    Raises
    ------
    DataError
        If shapes do not fit, a target is infinite, or the training targets do not vary.
    """
    if isinstance(y, SignedLabels):
        raise DataError("A regression probe was given class labels.", remedy="Pass real-valued targets.")
    target = np.asarray(y, np.float64)
    n_samples = np.shape(X)[0]
    if target.shape != (n_samples,):
        raise DataError(f"{n_samples} rows of activations with targets of shape {target.shape}; expected one each.")
    if labelled is not None:
        target = np.where(row_mask(labelled, target.shape), target, np.nan)
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
    signs = np.where(known, np.where(target > middle_of(training), 1, -1), 0).astype(np.int8)
    data = prepare(X, SignedLabels(signs), groups, split=codes, offset=offset, scale=scale, rng=rng)
    return TargetData(**vars(data), target=target[data.row_ids])


def middle_of(training: Floats) -> float:
    """Threshold that divides targets into classes: the training median, or the mean if no target exceeds the median."""
    middle = np.median(training)
    return float(middle if (training > middle).any() else np.mean(training))


def check_labels(
    labels: Labels, split: ArrayLike, n_samples: int, labelled: ArrayLike | None = None
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Signs of the labels (n_samples, n_features) and split codes, both int8, or a DataError that says what is wrong."""
    signs = as_signs(labels, labelled)
    signs = signs[:, None] if signs.ndim == 1 else signs
    codes = np.asarray(split)
    if signs.ndim != 2 or signs.shape[0] != n_samples or codes.shape != (n_samples,):
        raise DataError(
            f"{n_samples} rows of activations with labels of shape {signs.shape} and split of shape {codes.shape}.",
            remedy="Give one label per feature and one split code per row.",
        )
    if not np.isin(codes, (0, 1, 2)).all():
        strange = codes[~np.isin(codes, (0, 1, 2))][0]
        raise DataError(f"Split code {strange} found; expected 0 train, 1 validation or 2 test.")
    return signs, codes.astype(np.int8)


def check_quantisation(offset: ArrayLike | None, scale: ArrayLike | None, n_neurons: int) -> tuple[Floats, Floats]:
    """Offset and scale as (n_neurons,) float64, or a DataError."""
    low = np.zeros(n_neurons) if offset is None else np.asarray(offset, np.float64)
    step = np.ones(n_neurons) if scale is None else np.asarray(scale, np.float64)
    if low.shape != (n_neurons,) or step.shape != (n_neurons,):
        raise DataError(f"{n_neurons} neurons with offset {low.shape} and scale {step.shape}; expected one each.")
    if not (np.isfinite(low).all() and np.isfinite(step).all()):
        raise DataError("A quantisation offset or scale is not finite.", remedy="Extract again in a wider dtype.")
    return low, step


def default_split(
    signs: NDArray[np.int8], groups: ArrayLike | None, n_samples: int, rng: np.random.Generator | int = 0
) -> NDArray[np.int8]:
    """60/20/20 by group (by sample without groups), stratified by the rows' patterns of labels where those are few."""
    labels = signs
    labels = labels[:, None] if labels.ndim == 1 else labels
    if len(labels) != n_samples:
        raise DataError(f"{n_samples} rows of activations with {len(labels)} labels.", remedy="Give one label per row.")
    pattern = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    return group_split(np.arange(n_samples) if groups is None else groups, pattern, rng=rng)


def check_classes(labels: NDArray[np.int8], split: NDArray[np.int8]) -> None:
    """Raise a DataError unless every feature has both classes on train."""
    training = labels[split == 0]
    n_positive, n_negative = (training > 0).sum(axis=0), (training < 0).sum(axis=0)
    poor = np.flatnonzero((n_positive == 0) | (n_negative == 0))
    if len(poor):
        feature = int(poor[0])
        raise DataError(
            f"Feature {feature} has {n_positive[feature]} positive and {n_negative[feature]} negative training rows; "
            "a probe needs both classes.",
            remedy="Add labelled rows, drop the feature, or split otherwise.",
        )


def trainable_features(Y: Labels, split: ArrayLike, *, labelled: ArrayLike | None = None) -> NDArray[np.bool_]:
    """(n_features,) whether train holds both classes of the feature: which columns `score_features` accepts."""
    training = as_signs(Y, labelled)[np.asarray(split) == 0]
    return np.asarray((training > 0).any(axis=0) & (training < 0).any(axis=0))
