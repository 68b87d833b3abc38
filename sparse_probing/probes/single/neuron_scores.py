"""One-neuron scores of a layer as one frozen result: arrays, predictions, a table and its display.

No score is computed here; `scoring` does that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from sparse_probing import showing
from sparse_probing.errors import DataError, InputError
from sparse_probing.schemas import NEURON_BEST_METRICS, NEURON_METRICS, NEURON_SCORES, SPLITS

Floats = NDArray[np.float64]
# Neurons of a layer that validation compares, unless a study says otherwise.
SHORTLIST = 10


def _no_floats() -> Floats:
    return np.empty(0)


def _signs() -> NDArray[np.int8]:
    return np.array([-1, 1], np.int8)


@dataclass(frozen=True, eq=False, repr=False)
class NeuronScores:
    """One-neuron probes of one feature, for every neuron of a layer; every array is (n_neurons,).

    Attributes
    ----------
    coef, intercept:
        Logistic regression in units of activation: log-odds = intercept + coef * activation.
    coef_scaled:
        The same coefficient per ten training standard deviations, as regularised: coef * 10 * activation_std.
    activation_std:
        Population standard deviation over the labelled training rows; a neuron constant there has coef 0.
    converged:
        Whether Newton's method met its tolerance.
    best_threshold, best_direction:
        Positive where ``best_direction * (activation − best_threshold) > 0``: the highest train MCC of any threshold,
        midway (to a level) between the activations on either side.
    mean_difference:
        Mean activation of positive less that of negative training rows.
    f_statistic:
        One-way F of the two classes on train.
    mutual_information:
        Nats, on train, activations in at most 16 bins of nearly equal frequency.
    metrics:
        ``metrics[split][metric]`` of the logistic regression: predicted positive where the log-odds exceed 0.
    best_metrics:
        The same at the best threshold; score metrics along its direction.
    class_sizes:
        (3, 2) labelled samples by split (train, validation, test) and class (negative, positive).
    offset, scale:
        Of the uint8 levels that were scored, activation = offset + scale * level; empty where floats were scored.
    classes:
        (2,) what y called negative and positive.
    """

    coef: Floats
    intercept: Floats
    coef_scaled: Floats
    activation_std: Floats
    converged: NDArray[np.bool_]
    best_threshold: Floats
    best_direction: NDArray[np.int8]
    mean_difference: Floats
    f_statistic: Floats
    mutual_information: Floats
    metrics: Mapping[str, Mapping[str, Floats]]
    best_metrics: Mapping[str, Mapping[str, Floats]]
    class_sizes: NDArray[np.int64]
    offset: Floats = field(default_factory=_no_floats)
    scale: Floats = field(default_factory=_no_floats)
    classes: NDArray[Any] = field(default_factory=_signs)

    @property
    def n_neurons(self) -> int:
        """Number of neurons scored."""
        return len(self.coef)

    @property
    def threshold(self) -> Floats:
        """(n_neurons,) activation at which the log-odds are 0; NaN where the coefficient is 0."""
        none = self.coef == 0
        return np.where(none, np.nan, -self.intercept / np.where(none, 1.0, self.coef))

    @property
    def direction(self) -> NDArray[np.int8]:
        """(n_neurons,) +1 where the neuron rises with the feature, -1 where it falls, 0 where the coefficient is 0."""
        return np.sign(self.coef).astype(np.int8)

    def train_order(self) -> NDArray[np.intp]:
        """(n_neurons,) neurons from best to worst on train: MCC at the fitted threshold, then ROC-AUC, then number."""
        train = self.metrics["train"]
        return np.lexsort((np.arange(self.n_neurons), -train["roc_auc"], -train["mcc"]))

    def best_first(self) -> NDArray[np.intp]:
        """(n_neurons,) neurons as view `neuron_rankings` orders them: the best ten on train, compared on validation.

        Ties are broken by the order on train; the other neurons follow in that order. Test scores are not used.
        """
        order = self.train_order()
        short = order[:SHORTLIST]
        compared = np.nan_to_num(self.metrics["validation"]["mcc"][short], nan=-2.0)
        return np.concatenate([short[np.argsort(-compared, kind="stable")], order[SHORTLIST:]])

    def decision_function(self, X: ArrayLike, neuron: int | None = None) -> Floats:
        """(n_samples,) log-odds of one neuron's probe; parameters and errors as in `predict`."""
        chosen = int(self.best_first()[0]) if neuron is None else neuron
        if not 0 <= chosen < self.n_neurons:
            raise InputError(
                f"Neuron {chosen} requested; {self.n_neurons} were scored (0 to {self.n_neurons - 1}).",
                remedy="Name a column of X.",
            )
        table = np.asarray(X)
        if table.ndim != 2 or table.shape[1] != self.n_neurons:
            raise DataError(
                f"X has shape {table.shape}; expected (n_samples, {self.n_neurons}).", remedy="Pass the neurons scored."
            )
        value = table[:, chosen].astype(np.float64)
        if table.dtype == np.uint8 and len(self.scale):
            value = self.offset[chosen] + self.scale[chosen] * value
        return np.asarray(self.intercept[chosen] + self.coef[chosen] * value)

    def predict(self, X: ArrayLike, neuron: int | None = None) -> NDArray[Any]:
        """Classes that one neuron's probe predicts, coded as the y that was scored.

        Parameters
        ----------
        X:
            (n_samples, n_neurons) activations, not scaled; or uint8 levels of the same offset and scale, where levels
            were scored.
        neuron:
            Column of X; the first of `best_first` if absent.

        Returns
        -------
        (n_samples,) entries of `classes`: positive where the log-odds exceed 0.

        Raises
        ------
        DataError
            If X has another number of neurons.
        InputError
            If there is no such neuron.
        """
        return np.asarray(self.classes[(self.decision_function(X, neuron) > 0).astype(np.intp)])

    def table(self) -> pa.Table:
        """One row per neuron, best first, under the names of table `neuron_scores`.

        Left out are the columns that only a run knows: run, feature, layer, intervals, p- and q-values.
        """
        rank = np.empty(self.n_neurons, np.int32)
        rank[self.train_order()] = np.arange(1, self.n_neurons + 1)
        known: dict[str, NDArray[Any]] = {
            "neuron": np.arange(self.n_neurons),
            "coef": self.coef,
            "intercept": self.intercept,
            "converged": self.converged,
            "best_threshold": self.best_threshold,
            "best_direction": self.best_direction,
            "mean_difference": self.mean_difference,
            "f_statistic": self.f_statistic,
            "mutual_information": self.mutual_information,
            "layer_rank": rank,
            "shortlisted": rank <= SHORTLIST,
        }
        for split in SPLITS:
            known |= {f"{split}_{name}": self.metrics[split][name] for name in NEURON_METRICS}
            known |= {f"{split}_best_{name}": self.best_metrics[split][name] for name in NEURON_BEST_METRICS}
        order = self.best_first()
        fields = [field for field in NEURON_SCORES if field.name in known]
        columns = [pa.array(known[field.name][order]).cast(field.type, safe=False) for field in fields]
        return pa.Table.from_arrays(columns, schema=pa.schema(fields))

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        best = self.best_first()[: showing.N_SHOWN]
        sizes = [
            f"{name} {sum(size)} ({size[1]} positive)"
            for name, size in zip(SPLITS, self.class_sizes.tolist(), strict=True)
        ]
        columns = {
            "neuron": [str(neuron) for neuron in best],
            "direction": [showing.signed(value) for value in self.direction[best]],
            "threshold": [showing.digits(value) for value in self.threshold[best]],
        }
        for split in SPLITS:
            columns[f"{split}_mcc"] = [showing.decimals(value) for value in self.metrics[split]["mcc"][best]]
        rest = self.n_neurons - len(best)
        more = f"and {rest} more neurons; .table() has all" if rest else ""
        return f"NeuronScores of {self.n_neurons} neurons: {', '.join(sizes)}", columns, more

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


class FeatureScores(list[NeuronScores]):
    """Scores of several features on the same rows, in the order of their columns; a list that can show itself.

    Attributes
    ----------
    features:
        Name of each feature.
    """

    def __init__(self, scores: Iterable[NeuronScores], features: Sequence[str]) -> None:
        super().__init__(scores)
        self.features = tuple(features)

    def table(self) -> pa.Table:
        """One row per feature and neuron under the names of table `neuron_scores`; each feature's best neuron first."""
        name = NEURON_SCORES.field("feature")
        tables = []
        for feature, scores in zip(self.features, self, strict=True):
            table = scores.table()
            tables.append(table.add_column(0, name, pa.array([feature] * table.num_rows, name.type)))
        return pa.concat_tables(tables)

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        shown = list(zip(self.features, self, strict=True))[: 2 * showing.N_SHOWN]
        best = [int(scores.best_first()[0]) for _, scores in shown]
        columns = {
            "feature": [feature for feature, _ in shown],
            "neuron": [str(neuron) for neuron in best],
            "direction": [showing.signed(scores.direction[at]) for (_, scores), at in zip(shown, best, strict=True)],
        }
        for split in SPLITS:
            columns[f"{split}_mcc"] = [
                showing.decimals(scores.metrics[split]["mcc"][at]) for (_, scores), at in zip(shown, best, strict=True)
            ]
        rest = len(self) - len(shown)
        more = f"and {rest} more features; .table() has all" if rest else ""
        n_neurons = self[0].n_neurons if len(self) else 0
        headline = f"FeatureScores of {len(self)} features and {n_neurons} neurons; the best neuron of each"
        return headline, columns if shown else {}, more

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())
