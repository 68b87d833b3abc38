"""One layer's arrays to its result tables: every neuron alone, the study's probes, and what they stand beside.

No reading and no writing of artifacts; `tasks.probes` does that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_probing import schemas
from sparse_probing.config import ProbingSpec, canonical_json
from sparse_probing.probes import METHODS, baselines, permutations, regression, single, uncertainty
from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.neuron_scores import NeuronScores
from sparse_probing.probes.permutations import LabelPermutations
from sparse_probing.probes.results import ProbeFit
from sparse_probing.store.labels import LabelMatrix
from sparse_probing.store.matrices import LayerMatrix
from sparse_probing.store.predictions import pack, pack_groups

# Feature, layer (None: the best, whichever it is), method and k.
Certificate = tuple[str, int | None, str, int]


@dataclass(frozen=True)
class ProbingInputs:
    """What all layers of a run share."""

    run_id: str
    probing: ProbingSpec
    labels: LabelMatrix
    permutations: LabelPermutations
    # By number of stored neurons, which layers may differ in.
    rotations: Mapping[int, NDArray[np.float32]]
    # Certificates that are audited.
    audited: frozenset[Certificate] = frozenset()

    def audited_sizes(self, feature: str, layer: int | None, method: str) -> frozenset[int]:
        """The k at which a method's certificates are audited; `layer` is None for methods of the best layer."""
        return frozenset(k for *fit, k in self.audited if fit == [feature, layer, method])


def shared_inputs(
    run_id: str,
    probing: ProbingSpec,
    labels: LabelMatrix,
    n_neurons_by_layer: Sequence[int],
    layers: Sequence[int] = (),
) -> ProbingInputs:
    """Make the permutations, the random bases and the choice of audits once for all layers of a run."""
    generator = np.random.default_rng(probing.seed)
    return ProbingInputs(
        run_id=run_id,
        probing=probing,
        labels=labels,
        permutations=permutations.permute_labels(
            SignedLabels(labels.labels),
            labels.groups,
            split=labels.split,
            n_permutations=probing.n_permutations,
            rng=generator,
        ),
        rotations={n: baselines.random_rotation(n, generator) for n in sorted(set(n_neurons_by_layer))},
        audited=audited_certificates(probing, labels.features, layers),
    )


def audited_certificates(
    probing: ProbingSpec, features: Sequence[str], layers: Sequence[int]
) -> frozenset[Certificate]:
    """The sample of a run's certificates that is audited: as many as the spec says, in an order that its seed decides."""
    placed: list[tuple[int | None, str]] = [(None, method) for method in probing.best_layer_methods]
    placed += [(layer, method) for layer in layers for method in probing.methods]
    planned: list[Certificate] = [
        (feature, layer, method, k)
        for feature in features
        for layer, method in placed
        if METHODS[method].is_exact
        for k in probing.sizes(method)
    ]
    if probing.audited_certificates == "all":
        return frozenset(planned)

    def order(certificate: Certificate) -> str:
        return hashlib.sha256(canonical_json([probing.seed, *certificate]).encode()).hexdigest()

    return frozenset(sorted(planned, key=order)[: probing.audited_certificates])


def layer_tables(inputs: ProbingInputs, matrix: LayerMatrix) -> dict[str, pa.Table]:
    """Score every neuron of a layer on every feature; fit the study's methods and baselines.

    Parameters
    ----------
    matrix:
        (n_rows, n_neurons) stored activations, rows as in `inputs.labels`.

    Returns
    -------
    Tables of the kinds in `store.results.PART_KINDS`.
    """
    labels, probing = inputs.labels, inputs.probing
    arrays = _arrays(inputs, matrix)
    # One change of basis serves all features.
    values = matrix.values()
    turned = (values - values[labels.split == 0].mean(axis=0)) @ inputs.rotations[values.shape[1]]
    score_tables = [schemas.NEURON_SCORES.empty_table()]
    predictions = [schemas.TEST_PREDICTIONS.empty_table()]
    fits = {
        feature: _regression_fits(inputs, matrix, feature, turned, arrays) for feature in labels.regression_features
    }
    if labels.features:
        # Layers run side by side already.
        scored = single.score_features(matrix.codes, SignedLabels(labels.labels), labels.groups, n_threads=1, **arrays)
        null = permutations.max_null(matrix.codes, permutations=inputs.permutations)
    for column, (feature, level) in enumerate(zip(labels.features, labels.levels, strict=True)):
        y = SignedLabels(labels.labels[:, column])
        seed = _seed(probing.seed, feature, matrix.layer)
        p_value = null.p_value[column]
        score_tables.append(_score_table(inputs, matrix, feature, scored[column], p_value, y, arrays))
        predictions.append(_neuron_predictions(inputs, matrix, feature, scored[column], y, arrays))
        fits[feature] = [
            fit
            for method in probing.methods
            for fit in _fit(
                method,
                inputs,
                matrix,
                y,
                arrays,
                seed,
                scores=scored[column],
                audit=inputs.audited_sizes(feature, matrix.layer, method),
            )
        ]
        fits[feature] += baselines.feature_baselines(
            matrix.codes,
            y,
            labels.groups,
            turned=turned,
            token_ids=labels.token_ids if level == "token" else None,
            ranking=probing.ranking,
            dense=False,
            n_bootstrap=probing.n_bootstrap,
            rng=seed,
            **arrays,
        )
    tables = fit_tables(inputs.run_id, matrix.layer, matrix.neurons, fits)
    predictions.append(tables["test_predictions"])
    return {
        "neuron_scores": pa.concat_tables(score_tables).combine_chunks(),
        **tables,
        "test_predictions": pa.concat_tables(predictions).combine_chunks(),
    }


def best_layer_tables(inputs: ProbingInputs, matrix: LayerMatrix, features: Sequence[str]) -> dict[str, pa.Table]:
    """Fit the study's costlier methods for the features that do best on this layer."""
    arrays = _arrays(inputs, matrix)
    fits: dict[str, list[ProbeFit]] = {}
    for feature in features:
        classes = feature in inputs.labels.features
        methods = inputs.probing.best_layer_methods if classes else inputs.probing.best_layer_regression_methods
        y = _targets(inputs, feature)
        seed = _seed(inputs.probing.seed, feature, matrix.layer)
        fits[feature] = [
            fit.with_variant("dense") if method.startswith("dense_") else fit
            for method in methods
            for fit in _fit(method, inputs, matrix, y, arrays, seed, audit=inputs.audited_sizes(feature, None, method))
        ]
    return fit_tables(inputs.run_id, matrix.layer, matrix.neurons, fits)


def _targets(inputs: ProbingInputs, feature: str) -> SignedLabels | NDArray[Any]:
    """(n_rows,) labels of a feature, or its real-valued targets."""
    labels = inputs.labels
    if feature in labels.features:
        return SignedLabels(labels.labels[:, labels.features.index(feature)])
    return labels.targets[:, labels.regression_features.index(feature)]


def _regression_fits(
    inputs: ProbingInputs,
    matrix: LayerMatrix,
    feature: str,
    turned: NDArray[np.float32],
    arrays: dict[str, Any],
) -> list[ProbeFit]:
    """The study's regression probes of one feature, and what they stand beside."""
    y, seed = _targets(inputs, feature), _seed(inputs.probing.seed, feature, matrix.layer)
    fits = [
        fit for method in inputs.probing.regression_methods for fit in _fit(method, inputs, matrix, y, arrays, seed)
    ]
    level = inputs.labels.regression_levels[inputs.labels.regression_features.index(feature)]
    return fits + regression.target_baselines(
        matrix.codes,
        y,
        inputs.labels.groups,
        turned=turned,
        token_ids=inputs.labels.token_ids if level == "token" else None,
        ranking=inputs.probing.ranking,
        n_bootstrap=inputs.probing.n_bootstrap,
        rng=seed,
        **arrays,
    )


def fit_tables(
    run_id: str, layer: int, neurons: NDArray[np.int32], fits: dict[str, list[ProbeFit]]
) -> dict[str, pa.Table]:
    """Fits of one layer, by feature, as rows of probe_fits, probe_supports and test_predictions.

    `neurons` (n_neurons,) are the model's numbers of the columns; directions of a random basis keep their own.
    """
    rows, supports, predictions = [], [], []
    for feature, found in fits.items():
        for fit in found:
            where = {"run_id": run_id, "fit_id": _fit_id(run_id, feature, layer, fit), "layer": layer}
            rows.append(where | {"feature": feature} | fit.row())
            if fit.test_predicted is not None:
                truth = None if fit.test_truth is None else pack(fit.test_truth)
                predicted = {"probe_id": where["fit_id"], "predicted": pack(fit.test_predicted), "truth": truth}
                predictions.append({"run_id": run_id, "feature": feature} | predicted)
            for row in fit.support_rows():
                if fit.variant != "random_rotation":
                    row["neuron"] = int(neurons[row["neuron"]])
                supports.append(where | row)
    return {
        "probe_fits": pa.Table.from_pylist(rows, schema=schemas.PROBE_FITS),
        "probe_supports": pa.Table.from_pylist(supports, schema=schemas.PROBE_SUPPORTS),
        "test_predictions": pa.Table.from_pylist(predictions, schema=schemas.TEST_PREDICTIONS),
    }


def _arrays(inputs: ProbingInputs, matrix: LayerMatrix) -> dict[str, Any]:
    arrays: dict[str, Any] = {"split": inputs.labels.split}
    if matrix.codes.dtype == np.uint8:
        arrays |= {"offset": matrix.offset, "scale": matrix.scale}
    return arrays


def _fit(
    method: str,
    inputs: ProbingInputs,
    matrix: LayerMatrix,
    y: SignedLabels | NDArray[Any],
    arrays: dict[str, Any],
    seed: int,
    *,
    scores: NeuronScores | None = None,
    audit: frozenset[int] = frozenset(),
) -> list[ProbeFit]:
    probing = inputs.probing
    return METHODS[method](
        matrix.codes,
        y,
        inputs.labels.groups,
        k_values=probing.sizes(method),
        ranking=probing.ranking,
        n_candidates=probing.optimal_candidates,
        scores=scores,
        n_bootstrap=probing.n_bootstrap,
        time_limit_seconds=probing.optimal_time_limit_seconds,
        solver=probing.optimal_solver,
        audit=audit,
        rng=seed,
        **arrays,
    )


def _seed(seed: int, feature: str, layer: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{feature}/{layer}".encode()).digest()[:4], "big")


def _fit_id(run_id: str, feature: str, layer: int, fit: ProbeFit) -> str:
    key = [run_id, feature, layer, fit.method, fit.variant, fit.ranking, fit.k, fit.step]
    return hashlib.sha256(canonical_json(key).encode()).hexdigest()[:16]


def _score_table(
    inputs: ProbingInputs,
    matrix: LayerMatrix,
    feature: str,
    scores: NeuronScores,
    p_value: NDArray[np.float64],
    y: SignedLabels,
    arrays: dict[str, Any],
) -> pa.Table:
    n = scores.n_neurons
    rank = np.empty(n, np.int32)
    rank[scores.train_order()] = np.arange(1, n + 1)
    chosen = _shortlist(inputs, scores)
    columns: dict[str, Any] = {
        "run_id": _repeat(inputs.run_id, n),
        "feature": _repeat(feature, n),
        "layer": np.full(n, matrix.layer, np.int32),
        "neuron": matrix.neurons,
        "coef": scores.coef,
        "intercept": scores.intercept,
        "converged": scores.converged,
        "best_threshold": scores.best_threshold,
        "best_direction": scores.best_direction,
        "mean_difference": scores.mean_difference,
        "f_statistic": scores.f_statistic,
        "mutual_information": scores.mutual_information,
        "p_value": p_value,
        "q_value": np.ones(n, np.float32),
        "layer_rank": rank,
        "shortlisted": rank <= inputs.probing.shortlist,
    }
    for split in schemas.SPLITS:
        columns |= {f"{split}_{name}": scores.metrics[split][name] for name in schemas.NEURON_METRICS}
        columns |= {f"{split}_best_{name}": scores.best_metrics[split][name] for name in schemas.NEURON_BEST_METRICS}
    for split in ("validation", "test"):
        low, high = uncertainty.neuron_intervals(
            scores,
            matrix.codes,
            y,
            inputs.labels.groups,
            chosen,
            part=split,
            n_bootstrap=inputs.probing.n_bootstrap,
            **arrays,
        )
        columns[f"{split}_mcc_low"] = _sparse(low, chosen, n)
        columns[f"{split}_mcc_high"] = _sparse(high, chosen, n)
    return pa.Table.from_arrays(
        [_column(columns[field.name], field.type) for field in schemas.NEURON_SCORES], schema=schemas.NEURON_SCORES
    )


def _shortlist(inputs: ProbingInputs, scores: NeuronScores) -> NDArray[np.intp]:
    """Columns of the layer's best neurons on train, ascending."""
    return np.sort(scores.train_order()[: inputs.probing.shortlist])


def _neuron_predictions(
    inputs: ProbingInputs,
    matrix: LayerMatrix,
    feature: str,
    scores: NeuronScores,
    y: SignedLabels,
    arrays: dict[str, Any],
) -> pa.Table:
    """What the shortlisted neurons predict on the feature's test rows."""
    chosen = _shortlist(inputs, scores)
    quantisation = {name: arrays[name] for name in ("offset", "scale") if name in arrays}
    predicted = uncertainty.neuron_predictions(
        scores, matrix.codes, chosen, rows_of_test(inputs.labels, y.signs), **quantisation
    )
    rows = [
        {"run_id": inputs.run_id, "feature": feature, "probe_id": f"{matrix.layer}/{neuron}", "predicted": pack(column)}
        for neuron, column in zip(matrix.neurons[chosen], predicted.T, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.TEST_PREDICTIONS)


def rows_of_test(labels: LabelMatrix, known: NDArray[Any]) -> NDArray[np.intp]:
    """Test rows of a feature: those where `known` (n_rows,), its labels, is not 0."""
    return np.flatnonzero((labels.split == schemas.SPLITS.index("test")) & (known != 0))


def labels_of_test(run_id: str, labels: LabelMatrix) -> pa.Table:
    """What the test rows of every feature are judged by, and the group of each."""
    rows = []
    for feature, signs in zip(labels.features, labels.labels.T, strict=True):
        at = rows_of_test(labels, signs)
        rows.append(_labels_row(run_id, labels, feature, at, signs[at] > 0))
    for feature, target in zip(labels.regression_features, labels.targets.T, strict=True):
        at = rows_of_test(labels, ~np.isnan(target))
        rows.append(_labels_row(run_id, labels, feature, at, target[at]))
    return pa.Table.from_pylist(rows, schema=schemas.TEST_LABELS)


def _labels_row(
    run_id: str, labels: LabelMatrix, feature: str, rows: NDArray[np.intp], truth: NDArray[Any]
) -> dict[str, Any]:
    codes = pack_groups(labels.groups[rows])
    return {"run_id": run_id, "feature": feature, "n_rows": len(rows), "truth": pack(truth), "group_code": codes}


def _repeat(value: str, n: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value])).cast(pa.string())


def _sparse(values: NDArray[np.float64], at: NDArray[np.intp], n: int) -> pa.Array:
    """Values of some neurons among all; null where there is none."""
    full = np.full(n, np.nan)
    full[at] = values
    return pa.array(full, pa.float64(), from_pandas=True)


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(np.asarray(values)).cast(kind, safe=False)
