"""One layer's arrays to its result tables: one-neuron scores, the study's probes, and baselines.

Nothing is read or written here; `stages` does that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_probing import schemas
from sparse_probing.config import canonical_json
from sparse_probing.probes import METHODS, single, uncertainty
from sparse_probing.probes.data import ProbeData, TargetData, prepare, prepare_targets
from sparse_probing.probes.experiments import baselines, regression
from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.results import ProbeFit
from sparse_probing.probes.single import NeuronScores
from sparse_probing.probes.uncertainty import permutations
from sparse_probing.runs.inputs import ProbingInputs
from sparse_probing.store.matrices import LayerMatrix
from sparse_probing.store.predictions import pack


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
    # One change of basis serves all features.
    values = matrix.values()
    rotated = (values - values[labels.split == 0].mean(axis=0)) @ inputs.rotations[values.shape[1]]
    score_tables = [schemas.NEURON_SCORES.empty_table()]
    predictions = [schemas.TEST_PREDICTIONS.empty_table()]
    fits = {feature: _regression_fits(inputs, matrix, feature, rotated) for feature in labels.regression_features}
    if labels.features:
        # Layers run side by side already.
        scored = single.score_features(
            matrix.codes, SignedLabels(labels.labels), labels.groups, n_threads=1, **_arrays(inputs, matrix)
        )
        null = permutations.max_null(matrix.codes, permutations=inputs.permutations)
    for column, (feature, level) in enumerate(zip(labels.features, labels.levels, strict=True)):
        scores, data = scored[column], _prepared(inputs, matrix, feature)
        score_tables.append(_score_table(inputs, matrix, feature, scores, null.p_value[column], data))
        predictions.append(_neuron_predictions(inputs, matrix, feature, scores, data))
        fits[feature] = [
            fit
            for method in probing.methods
            for fit in _fit(method, inputs, matrix, feature, data, scores=scores, at_layer=True)
        ]
        fits[feature] += baselines.feature_baselines(
            data,
            rotated=rotated,
            token_ids=labels.token_ids if level == "token" else None,
            ranking=probing.ranking,
            dense=False,
            n_bootstrap=probing.n_bootstrap,
            rng=_seed(probing.seed, feature, matrix.layer),
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
    fits: dict[str, list[ProbeFit]] = {}
    for feature in features:
        classes = feature in inputs.labels.features
        methods = inputs.probing.best_layer_methods if classes else inputs.probing.best_layer_regression_methods
        data = _prepared(inputs, matrix, feature) if classes else _prepared_targets(inputs, matrix, feature)
        fits[feature] = [
            fit.with_variant("dense") if method.startswith("dense_") else fit
            for method in methods
            for fit in _fit(method, inputs, matrix, feature, data)
        ]
    return fit_tables(inputs.run_id, matrix.layer, matrix.neurons, fits)


def _prepared(inputs: ProbingInputs, matrix: LayerMatrix, feature: str) -> ProbeData:
    """A feature's labelled rows."""
    labels = inputs.labels
    y = SignedLabels(labels.labels[:, labels.features.index(feature)])
    return prepare(matrix.codes, y, labels.groups, **_arrays(inputs, matrix))


def _prepared_targets(inputs: ProbingInputs, matrix: LayerMatrix, feature: str) -> TargetData:
    """The rows of a feature of real values that have one."""
    labels = inputs.labels
    y = labels.targets[:, labels.regression_features.index(feature)]
    return prepare_targets(matrix.codes, y, labels.groups, **_arrays(inputs, matrix))


def _regression_fits(
    inputs: ProbingInputs, matrix: LayerMatrix, feature: str, rotated: NDArray[np.float32]
) -> list[ProbeFit]:
    """The study's regression probes of one feature, and its baselines."""
    data = _prepared_targets(inputs, matrix, feature)
    fits = [fit for method in inputs.probing.regression_methods for fit in _fit(method, inputs, matrix, feature, data)]
    level = inputs.labels.regression_levels[inputs.labels.regression_features.index(feature)]
    return fits + regression.target_baselines(
        data,
        rotated=rotated,
        token_ids=inputs.labels.token_ids if level == "token" else None,
        ranking=inputs.probing.ranking,
        n_bootstrap=inputs.probing.n_bootstrap,
        rng=_seed(inputs.probing.seed, feature, matrix.layer),
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
    """Split and quantisation, as the functions of `probes` take them."""
    arrays: dict[str, Any] = {"split": inputs.labels.split}
    if matrix.codes.dtype == np.uint8:
        arrays |= {"offset": matrix.offset, "scale": matrix.scale}
    return arrays


def _fit(
    method: str,
    inputs: ProbingInputs,
    matrix: LayerMatrix,
    feature: str,
    data: ProbeData,
    *,
    scores: NeuronScores | None = None,
    at_layer: bool = False,
) -> list[ProbeFit]:
    """One method's fits; `at_layer` tells methods of every layer from those of the best one, whose audits are others."""
    probing = inputs.probing
    return METHODS[method].fit(
        data,
        k_values=probing.sizes(method),
        ranking=probing.ranking,
        n_candidates=probing.optimal_candidates,
        scores=scores,
        n_bootstrap=probing.n_bootstrap,
        time_limit_seconds=probing.optimal_time_limit_seconds,
        solver=probing.optimal_solver,
        audit=inputs.audited_sizes(feature, matrix.layer if at_layer else None, method),
        rng=_seed(probing.seed, feature, matrix.layer),
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
    data: ProbeData,
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
            scores, data, chosen, part=split, n_bootstrap=inputs.probing.n_bootstrap
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
    inputs: ProbingInputs, matrix: LayerMatrix, feature: str, scores: NeuronScores, data: ProbeData
) -> pa.Table:
    """What the shortlisted neurons predict on the feature's test rows."""
    chosen = _shortlist(inputs, scores)
    predicted = uncertainty.neuron_predictions(scores, data, chosen)
    rows = [
        {"run_id": inputs.run_id, "feature": feature, "probe_id": f"{matrix.layer}/{neuron}", "predicted": pack(column)}
        for neuron, column in zip(matrix.neurons[chosen], predicted.T, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.TEST_PREDICTIONS)


def _repeat(value: str, n: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value])).cast(pa.string())


def _sparse(values: NDArray[np.float64], at: NDArray[np.intp], n: int) -> pa.Array:
    """Values of some neurons among all; null where there is none."""
    full = np.full(n, np.nan)
    full[at] = values
    return pa.array(full, pa.float64(), from_pandas=True)


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(np.asarray(values)).cast(kind, safe=False)
