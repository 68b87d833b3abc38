"""Checks of the arrays and options of a certified probe; each error has its remedy."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_probing.errors import DataError, InputError
from sparse_probing.probes.labelling import Labels, as_signs
from sparse_probing.probes.optimal.cuts import Index
from sparse_probing.probes.optimal.interior_point import Array

Weights = Literal["balanced"] | ArrayLike | None


def checked_k(k: int) -> int:
    """k as an int of at least 1."""
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise InputError(f"k is {k}; expected an integer of at least 1.", remedy="Ask for one neuron or more.")
    return int(k)


def check_options(time_limit_seconds: float, gap_tolerance: float, gamma: float | None, solver: str) -> None:
    """Raise InputError unless every option is in range."""
    if not time_limit_seconds > 0:
        raise InputError(
            f"time_limit_seconds is {time_limit_seconds}; expected more than 0.", remedy="Allow some time."
        )
    if not 0 < gap_tolerance < 1:
        raise InputError(f"gap_tolerance is {gap_tolerance}; expected between 0 and 1.", remedy="1e-4 is usual.")
    if gamma is not None and not (gamma > 0 and np.isfinite(gamma)):
        raise InputError(f"gamma is {gamma}; expected a positive number.", remedy="Leave it out for n_samples ** -0.5.")
    if solver not in ("tree", "gurobi"):
        raise InputError(f"solver is {solver!r}; expected 'tree' or 'gurobi'.", remedy="'tree' needs no licence.")


def checked_matrix(X: ArrayLike) -> Array:
    """X as float64 (n_samples, n_neurons), finite."""
    matrix = np.asarray(X, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(
            f"X has shape {matrix.shape}; expected (n_samples, n_neurons), neither zero.", remedy="Pass a matrix."
        )
    if not np.isfinite(matrix).all():
        bad = int(np.flatnonzero(~np.isfinite(matrix).all(axis=0))[0])
        raise DataError(
            f"X holds values that are not finite, first in neuron {bad}; expected finite activations.",
            remedy="Drop those rows or neurons, or look for an overflow at extraction.",
        )
    return matrix


def checked_data(X: ArrayLike, y: Labels, labelled: ArrayLike | None = None) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Activations and ±1 of the labelled rows as float64, both classes present; and (n_samples,) which rows those are."""
    signs = as_signs(y, labelled)
    n_samples = len(np.asarray(X)) if np.ndim(X) else 0
    if np.ndim(X) == 2 and signs.shape != (n_samples,):
        raise DataError(
            f"y has shape {signs.shape} beside X of {np.shape(X)}; expected one label a row.",
            remedy="Align labels and activations by row.",
        )
    kept = signs != 0
    if not kept.any():
        raise DataError("y holds no label; expected both classes.", remedy="Label some rows.")
    matrix = checked_matrix(X if kept.all() or np.ndim(X) != 2 else np.asarray(X)[kept])
    labels = signs[kept].astype(np.float64)
    if labels.min() == labels.max():
        raise DataError(
            f"y holds one class only ({labels[0]:+.0f}); expected both.", remedy="Sample rows of the other class."
        )
    return matrix, labels, kept


def checked_neurons(neurons: ArrayLike | None, n_neurons: int, name: str) -> Index | None:
    """Distinct column indices, ascending; None stays None."""
    if neurons is None:
        return None
    chosen = np.unique(np.asarray(neurons)).astype(np.intp)
    if not chosen.size or chosen[0] < 0 or chosen[-1] >= n_neurons:
        raise InputError(
            f"{name} are {chosen.tolist()[:5]}…; expected column indices of X from 0 to {n_neurons - 1}.",
            remedy=f"Mend {name}, or leave it out.",
        )
    return chosen


def sample_weights(weights: Weights, y: Array, kept: NDArray[np.bool_]) -> Array:
    """(n_rows,) positive weights of the rows kept, which y is of; numbers are given for all samples, as `kept` is."""
    if weights is None:
        return np.ones(y.size)
    if isinstance(weights, str):
        if weights != "balanced":
            raise InputError(f"weights is {weights!r}; expected 'balanced', None or numbers.", remedy="Use 'balanced'.")
        positive = y > 0
        share = float(positive.mean())
        return np.where(positive, 0.5 / share, 0.5 / (1.0 - share))
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != kept.shape or not (np.isfinite(w[kept]).all() and (w[kept] > 0).all()):
        raise DataError(
            f"weights have shape {w.shape}; expected {kept.shape} positive numbers.",
            remedy="Drop rows of weight zero.",
        )
    return w[kept]
