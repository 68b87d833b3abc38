"""The result of `fit_optimal`: a sparse probe with its proof, its predictions, a table and its display."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from sparse_probing import showing
from sparse_probing.probes.optimal.interior_point import Array
from sparse_probing.schemas import PROBE_FITS, PROBE_SUPPORTS


@dataclass(frozen=True, eq=False, repr=False)
class OptimalFit:
    """A sparse probe and what is proved about it.

    Attributes
    ----------
    support:
        (k,) neurons, ascending.
    coef, intercept:
        (k,) coefficients in the order of ``support``, and scalar, in the units of X: the score of a
        sample is ``X[:, support] @ coef + intercept``.
    coef_scaled:
        (k,) the coefficients that the ridge penalises: per ten standard deviations, or ``coef`` itself without
        standardisation.
    objective:
        Value of the training objective, on standardised activations if `standardise` was True.
    bound:
        Lower bound on the objective of every support of k neurons; valid for every status.
    gap:
        ``(objective − bound) / |objective|``.
    status:
        ``optimal`` (the gap is within the tolerance), ``time_limit``, ``stalled`` (the tolerance is finer than the
        arithmetic), or ``size_limit`` (Gurobi alone: more neurons were left than its licence takes).
    n_cuts:
        Dual points evaluated, each a cut over all neurons left at that time.
    n_nodes:
        Relaxations solved in the tree, or nodes that Gurobi explored.
    n_fixed:
        Neurons that were excluded before the search, by proof that no better support contains them.
    n_candidates_left:
        Neurons that entered the search.
    seconds:
        Wall time.
    n_candidates, n_neurons:
        Neurons that were searched, and columns of X. The proof covers supports among the neurons searched.
    ridge:
        λ in the objective's λ/2 ‖β‖²: 1/γ.
    unit_standard_deviations:
        Unit of the activations that ``coef_scaled`` multiplies, in standard deviations of the rows fitted; None if
        they were not standardised.
    phase_seconds:
        Wall time of ``root``, ``incumbent``, ``search``.
    classes:
        (2,) what y called negative and positive; empty for regression.
    """

    support: NDArray[np.int64]
    coef: Array
    intercept: float
    objective: float
    bound: float
    gap: float
    status: str
    n_cuts: int
    n_nodes: int
    n_fixed: int
    n_candidates_left: int
    seconds: float
    coef_scaled: Array
    n_candidates: int
    n_neurons: int
    ridge: float
    unit_standard_deviations: float | None
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    classes: NDArray[Any] = field(default_factory=lambda: np.empty(0, np.int8))

    def decision_function(self, X: ArrayLike) -> Array:
        """(n_samples,) ``X[:, support] @ coef + intercept`` for X (n_samples, n_neurons), in the units that were fitted."""
        return np.asarray(X, dtype=np.float64)[:, self.support] @ self.coef + self.intercept

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Predictions for X (n_samples, n_neurons), with all columns, in the units of the X that was fitted.

        Returns
        -------
        (n_samples,) entries of `classes`, coded as the y that was fitted, positive where the score exceeds 0; of a
        regression the score itself.
        """
        score = self.decision_function(X)
        return self.classes[(score > 0).astype(np.intp)] if len(self.classes) else score

    def table(self) -> pa.Table:
        """One row per neuron of the support, of largest scaled coefficient first.

        Columns ``neuron``, ``position_in_support`` and ``coef`` are those of table `probe_supports`; the others are
        those of `probe_fits`, the same in every row.
        """
        order = np.argsort(-np.abs(self.coef_scaled), kind="stable")
        each: dict[str, Any] = {
            "neuron": self.support[order],
            "position_in_support": np.arange(len(order)),
            "coef": self.coef[order],
        }
        whole: dict[str, Any] = {"k": len(order), "n_candidates": self.n_candidates, "n_neurons": self.n_neurons}
        whole |= {"ridge": self.ridge, "unit_standard_deviations": self.unit_standard_deviations}
        whole |= {"status": self.status, "objective": self.objective, "bound": self.bound}
        whole |= {"gap": self.gap, "n_cuts": self.n_cuts, "fit_seconds": self.seconds}
        each |= {name: [value] * len(order) for name, value in whole.items()}
        fields = [(PROBE_SUPPORTS if name in PROBE_SUPPORTS.names else PROBE_FITS).field(name) for name in each]
        arrays = [pa.array(each[one.name]).cast(one.type) for one in fields]
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        order = np.argsort(-np.abs(self.coef_scaled), kind="stable")[: 2 * showing.N_SHOWN]
        columns = {
            "neuron": [str(neuron) for neuron in self.support[order]],
            "coef": [showing.digits(value) for value in self.coef[order]],
            "coef_scaled": [showing.digits(value) for value in self.coef_scaled[order]],
        }
        rest = len(self.support) - len(order)
        searched = "" if self.n_candidates == self.n_neurons else f"{self.n_candidates} candidates among "
        headline = (
            f"OptimalFit of {len(self.support)} of {searched}{self.n_neurons} neurons: {self.status}, "
            f"objective {self.objective:.6g}, bound {self.bound:.6g}, gap {self.gap:.1e}, {self.seconds:.2f} s"
        )
        unit = self.unit_standard_deviations
        units = "as handed in" if unit is None else f"in units of {unit:g} standard deviations"
        more = f"intercept {self.intercept:.4g}; ridge {self.ridge:.4g} on activations {units}"
        more += f"; and {rest} more neurons; .table() has all" if rest else ""
        return headline, columns, more

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


class OptimalFits(list[OptimalFit]):
    """Fits of one problem at several k, in the order asked for; a list that can show itself."""

    def table(self) -> pa.Table:
        """The tables of the fits one after the other: one row per fit and neuron of its support."""
        return pa.concat_tables([fit.table() for fit in self])

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        shown = self[: 2 * showing.N_SHOWN]
        columns = {
            "k": [str(len(fit.support)) for fit in shown],
            "status": [fit.status for fit in shown],
            "objective": [showing.digits(fit.objective) for fit in shown],
            "bound": [showing.digits(fit.bound) for fit in shown],
            "gap": [f"{fit.gap:.1e}" for fit in shown],
            "support": [_first_of(fit.support) for fit in shown],
        }
        rest = len(self) - len(shown)
        more = f"and {rest} more fits; .table() has all" if rest else ""
        return f"{len(self)} optimal fit{'' if len(self) == 1 else 's'}", columns if shown else {}, more

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


def _first_of(support: NDArray[np.int64]) -> str:
    rest = len(support) - 2 * showing.N_SHOWN
    named = ", ".join(str(neuron) for neuron in support[: 2 * showing.N_SHOWN])
    return f"{named} and {rest} more" if rest > 0 else named
