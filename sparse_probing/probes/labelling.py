"""The coding of labels: every public function of `probes` that takes ``y`` reads it with this module.

One coding inside the package, ``+1`` positive, ``-1`` negative, ``0`` not labelled; `SignedLabels` marks arrays that have
it already, such as the label matrices of the store. No labels are made and no rows are dropped here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError

_EXPECTED = "expected booleans, 0 and 1, or -1 and +1"
_REMEDY = "Mark rows without a label by NaN, or pass labelled=, a boolean for each row."


@dataclass(frozen=True, eq=False)
class SignedLabels:
    """Labels in the coding of stored label matrices, so that a 0 among them is never taken for a class.

    Attributes
    ----------
    signs:
        (n_samples,) or (n_samples, n_features) int8: +1 positive, -1 negative, 0 not labelled.

    Raises
    ------
    DataError
        If there is any other value.
    """

    signs: NDArray[np.int8]

    def __post_init__(self) -> None:
        values = np.asarray(self.signs)
        strange = ~np.isin(values, (-1, 0, 1))
        if strange.any():
            raise DataError(
                f"Label {values[strange][0]} found; expected +1, -1, or 0 for not labelled.",
                remedy="Recode the labels.",
            )


# What a function of `probes` takes as y.
Labels = ArrayLike | SignedLabels


def as_signs(y: Labels, labelled: ArrayLike | None = None) -> NDArray[np.int8]:
    """Labels as int8 of y's shape: +1 positive, -1 negative, 0 where there is no label.

    Parameters
    ----------
    y:
        (n_samples,) or (n_samples, n_features): booleans, 0 and 1, or -1 and +1; NaN for not labelled.
    labelled:
        (n_samples,) or y's shape, bool; y is ignored in the other rows. All rows if absent.

    Raises
    ------
    DataError
        If y holds -1, 0 and +1 (0 may mean either), or any other value; or if `labelled` does not fit.
    """
    values = y.signs if isinstance(y, SignedLabels) else _numbers(y)
    asked = row_mask(labelled, values.shape)
    if isinstance(y, SignedLabels):
        return np.where(asked, values, 0).astype(np.int8)
    if values.dtype == bool:
        return np.where(asked, np.where(values, 1, -1), 0).astype(np.int8)
    known = asked & ~np.isnan(values) if np.issubdtype(values.dtype, np.floating) else asked
    one, zero, minus = values == 1, values == 0, values == -1
    strange = known & ~(one | zero | minus)
    if strange.any():
        raise DataError(f"Label {values[strange][0]} found; {_EXPECTED}.", remedy=_REMEDY)
    if (known & zero).any() and (known & minus).any():
        found = "-1, 0 and +1" if (known & one).any() else "-1 and 0"
        raise DataError(f"Labels {found} found: 0 may mean negative or not labelled; {_EXPECTED}.", remedy=_REMEDY)
    return np.where(known, np.where(one, 1, -1), 0).astype(np.int8)


def as_positive(y: Labels) -> NDArray[np.bool_]:
    """Labels as booleans of y's shape, where every sample has one; coded as in `as_signs`.

    Raises
    ------
    DataError
        As `as_signs`, or if a label is missing.
    """
    if isinstance(y, np.ndarray) and y.dtype == bool:
        return y
    signs = as_signs(y)
    missing = int(np.count_nonzero(signs == 0))
    if missing:
        raise DataError(
            f"{missing} of {signs.size} samples have no label; expected one each.", remedy="Leave those samples out."
        )
    return signs > 0


def label_classes(y: Labels) -> NDArray[np.bool_] | NDArray[np.int8]:
    """(2,) what y calls negative and positive: False and True, 0 and 1, or -1 and +1; predictions are given in the same."""
    if isinstance(y, SignedLabels):
        return np.array([-1, 1], np.int8)
    values = _numbers(y)
    if values.dtype == bool:
        return np.array([False, True])
    return np.array([0 if (values == 0).any() and not (values == -1).any() else -1, 1], np.int8)


def _numbers(y: ArrayLike) -> NDArray[np.bool_] | NDArray[np.float64]:
    values = np.asarray(y)
    if values.dtype == bool or np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating):
        return values
    try:
        # pandas marks what is missing by a value of its own.
        known = [np.nan if type(value).__name__ == "NAType" else value for value in values.flat]
        return np.array(known, np.float64).reshape(values.shape) if values.dtype == object else _refused(values)
    except (TypeError, ValueError):
        return _refused(values)


def _refused(values: NDArray[np.generic]) -> NDArray[np.float64]:
    raise DataError(f"Labels of type {values.dtype} found; {_EXPECTED}.", remedy=_REMEDY)


def row_mask(labelled: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """`labelled` in y's shape; all True if absent."""
    if labelled is None:
        return np.ones(shape, bool)
    mask = np.asarray(labelled)
    if mask.dtype != bool or mask.shape not in (shape, shape[:1]):
        raise DataError(
            f"labelled has type {mask.dtype} and shape {mask.shape} beside labels of shape {shape}; expected a boolean each.",
            remedy="Pass a mask such as ~np.isnan(y).",
        )
    return mask if mask.shape == shape else np.broadcast_to(mask[:, None], shape)
