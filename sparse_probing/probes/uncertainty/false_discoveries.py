"""False discovery rates over the features and layers of a run. P-values come from `permutations`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Q-values of a family of p-values: the false discovery rate at which each is rejected (Benjamini, Hochberg 1995).

    NaN stays NaN and does not count.
    """
    values = np.asarray(p, np.float64)
    flat = values.ravel()
    known = np.flatnonzero(np.isfinite(flat))
    order = known[np.argsort(flat[known])]
    scaled = flat[order] * len(order) / np.arange(1, len(order) + 1)
    out = np.full(flat.shape, np.nan)
    out[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return out.reshape(values.shape)


class FamilyRates:
    """Q-values of neurons whose p-values are already adjusted within their family (a layer and feature).

    A family is judged by its smallest p-value; the false discovery rate (Benjamini and Hochberg 1995) runs over families.
    A neuron's q-value is the rate at which its family would be rejected had its own p-value been the family's smallest.

    Parameters
    ----------
    smallest:
        (n_families,) smallest p-value of each family of a run.
    """

    def __init__(self, smallest: ArrayLike) -> None:
        self._order = np.sort(np.asarray(smallest, np.float64))
        n = len(self._order)
        rates = (self._order * n / np.arange(1, n + 1))[::-1]
        self._rates = np.minimum(np.minimum.accumulate(rates)[::-1], 1.0)

    def q_values(self, family: ArrayLike) -> Floats:
        """(n_neurons,) q-values of one family's p-values."""
        p_values, n = np.asarray(family, np.float64), len(self._order)
        position = np.searchsorted(self._order, p_values, side="left")
        q_values = np.where(position >= n, p_values, self._rates[np.minimum(position, n - 1)])
        return np.where(np.isfinite(p_values), np.maximum(q_values, p_values), np.nan)


def smallest_p_value(family: ArrayLike) -> float:
    """What a family is judged by; 1 where none of its p-values is a number."""
    return float(np.nanmin(np.asarray(family, np.float64), initial=1.0))


def family_q_values(families: Sequence[ArrayLike]) -> list[Floats]:
    """Q-values of all families of a run at once; see `FamilyRates`.

    Parameters
    ----------
    families:
        One (n_neurons,) array of `MaxNull.p_value` per layer and feature of a run.
    """
    rates = FamilyRates([smallest_p_value(family) for family in families])
    return [rates.q_values(family) for family in families]
