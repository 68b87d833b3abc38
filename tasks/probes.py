"""Tasks that probe: one layer at a time, then one run as a whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from prefect import task

from sparse_probing import config, schemas
from sparse_probing.config import CollectionSpec, ModelSpec, ProbingSpec
from sparse_probing.probes import false_discoveries
from sparse_probing.probes.splits import reference_split
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.store.labels import LabelMatrix, read_labels
from sparse_probing.store.locks import owned
from sparse_probing.store.manifests import Manifest, package_versions, read_manifest
from sparse_probing.store.matrices import read_layer
from tasks.layers import (
    ProbingInputs,
    best_layer_tables,
    labels_of_test,
    layer_tables,
    shared_inputs,
)
from tasks.logs import as_ranges, log, logged, stored_bytes
from tasks.policies import POLICY
from tasks.progress import advance, say_and_log, step
from tasks.references import RunReference, data_root, located
from tasks.repair import mend
from tasks.threads import use_one_blas_thread


def _run_digest(probing: ProbingSpec, dataset: Manifest, activations: Manifest) -> str:
    inputs = {"dataset": dataset.digest, "activations": activations.digest}
    return config.digest(probing, inputs=inputs, version=config.PROBING_VERSION)


# Labels, permutations and the random basis are the same for all layers; the last run's are kept.
# Of the reference split's training rows: it has no validation part of its own, and layers are compared on one.
REFERENCE_VALIDATION = 0.2
_shared: dict[str, ProbingInputs] = {}
_sharing = threading.Lock()


def _labels(run: RunReference) -> LabelMatrix:
    """The run's labels, on the split that its probing asks for."""
    labels = read_labels(located(run.dataset), located(run.activations))
    if run.probing.split == "group":
        return labels
    rows = reference_split(len(labels.split), validation_fraction=REFERENCE_VALIDATION, seed=run.probing.seed)
    return replace(labels, split=rows)


def _inputs(run: RunReference) -> ProbingInputs:
    use_one_blas_thread()
    with _sharing:
        if run.run_id not in _shared:
            _shared.clear()
            labels = _labels(run)
            counts = read_manifest(located(run.activations)).facts["n_neurons_by_layer"]
            _shared[run.run_id] = shared_inputs(run.run_id, run.probing, labels, counts, run.layers)
        return _shared[run.run_id]


@task(name="plan-run", **POLICY)
def plan_run(
    study: str, model: ModelSpec, collection: CollectionSpec, probing: ProbingSpec, dataset: str, activations: str
) -> RunReference:
    """Name the run after what decides its results, and say which layers it has. What is damaged of it is set aside."""
    root, manifest = data_root(), read_manifest(located(activations))
    run_id = _run_digest(probing, read_manifest(located(dataset)), manifest)[:16]
    mend([results.run_folder(root, kind, run_id) for kind in schemas.RESULT_KINDS])
    mend(list(results.running_folder(root, run_id).children()))
    reference = RunReference(
        run_id=run_id,
        study=study,
        model=model,
        collection=collection,
        probing=probing,
        dataset=dataset,
        activations=activations,
        hook=manifest.facts["hook"],
        revision=manifest.facts["revision"],
        layers=tuple(manifest.facts["layers"]),
        finished=results.is_finished(root, run_id),
    )
    log("Run was there" if reference.finished else "Run", **_names(reference), layers=as_ranges(reference.layers))
    return reference


def _names(run: RunReference) -> dict[str, str]:
    """What a line of a log says of a run."""
    return {
        "model": run.model.short_name,
        "revision": run.revision,
        "collection": run.collection.collection,
        "hook": run.hook,
        "run": run.run_id,
    }


def _short_kind(kind: str) -> str:
    """A kind of results as a log calls it: scores, fits, features."""
    return kind.removeprefix("probe_").removeprefix("neuron_")


@contextmanager
def _logged_part(run: RunReference, work: str, layer: int, part: str) -> Iterator[dict[str, object]]:
    """As `logged`, with what the part of a run holds."""
    with logged(work, **_names(run), layer=layer) as numbers:
        yield numbers
        manifest = read_manifest(results.part_folder(data_root(), run.run_id, part))
        numbers |= {
            _short_kind(kind): manifest.files[f"{kind}.parquet"].n_rows
            for kind in ("neuron_scores", "probe_fits")
            if f"{kind}.parquet" in manifest.files
        }
        numbers["bytes"] = stored_bytes(manifest)


def own_run(run: RunReference) -> AbstractContextManager[None]:
    """Keep every other process from probing a run; waits for one that does."""
    return owned(data_root(), results.running_folder(data_root(), run.run_id), say=say_and_log)


def is_finished(run: RunReference) -> bool:
    """Whether a run is finished by now."""
    return results.is_finished(data_root(), run.run_id)


@task(name="probe-layer", task_run_name="probe {run.title} layer {layer}", **POLICY)
def probe_layer(run: RunReference, layer: int) -> str:
    """Score every neuron of a layer on every feature, and fit the study's probes; returns the layer's reference."""
    root = data_root()
    part = results.layer_part(layer)
    if not results.is_part_done(root, run.run_id, part):
        with _logged_part(run, "Layer probed", layer, part) as numbers:
            matrix = read_layer(located(run.activations), layer)
            numbers |= {"rows": len(matrix.codes), "neurons": len(matrix.neurons)}
            tables = layer_tables(_inputs(run), matrix)
            results.write_part(root, run.run_id, part, tables)
    advance(f"Probe {run.text}", len(run.layers))
    return part


@task(name="choose-layers", task_run_name="choose layers {run.title}", **POLICY)
def choose_layers(run: RunReference) -> dict[int, list[str]]:
    """The layers that hold some feature's best neuron by validation, and the features of each."""
    features = features_table(run.run_id, _labels(run))
    chosen: dict[int, list[str]] = {}
    for feature, layer in best_layers_of_run(data_root(), run.run_id, run.layers, features).items():
        chosen.setdefault(layer, []).append(feature)
    n_features = sum(map(len, chosen.values()))
    log("Layers chosen", **_names(run), layers=as_ranges(chosen), features=n_features)
    return dict(sorted(chosen.items()))


@task(name="probe-best-layer", task_run_name="probe {run.title} best layer {layer}", **POLICY)
def probe_best_layer(run: RunReference, layer: int, features: list[str], total: int) -> str:
    """Fit the costlier methods for the features that do best on this layer; returns the part's name."""
    root = data_root()
    part = results.best_part(layer)
    if not results.is_part_done(root, run.run_id, part):
        with _logged_part(run, "Best layer compared", layer, part) as numbers:
            matrix = read_layer(located(run.activations), layer)
            numbers |= {"features": len(features), "rows": len(matrix.codes)}
            tables = best_layer_tables(_inputs(run), matrix, features)
            results.write_part(root, run.run_id, part, tables)
    advance(f"Compare {run.text}", total)
    return part


def best_layers_of_run(root: Location, run_id: str, layers: Sequence[int], features: pa.Table) -> dict[str, int]:
    """`selecting.best_layers` of the layers' parts on disk; a few columns of one layer at a time are in memory."""
    from sparse_probing.warehouse import selecting

    scores = _of_layers(root, run_id, layers, "neuron_scores", selecting.SCORE_COLUMNS)
    fits = (results.read_part(root, run_id, results.layer_part(layer), "probe_fits") for layer in layers)
    return selecting.best_layers(features, scores, fits)


def _of_layers(
    root: Location, run_id: str, layers: Sequence[int], kind: str, columns: Sequence[str]
) -> Iterator[pa.Table]:
    for layer in layers:
        yield results.read_part(root, run_id, results.layer_part(layer), kind, columns=list(columns))


@task(name="finish-run", task_run_name="finish {run.title}", **POLICY)
def finish_run(run: RunReference, best_parts: list[str]) -> str:
    """Put the layers together, correct for the number of tests, and write the run's fragments; returns its id."""
    root = data_root()
    if results.is_finished(root, run.run_id):
        return run.run_id
    dataset, activations = located(run.dataset), located(run.activations)
    dataset_manifest, manifest = read_manifest(dataset), read_manifest(activations)
    with step(f"Finish {run.text}"), logged("Run is finished", **_names(run)) as numbers:
        run_id = _finish(run, best_parts, dataset_manifest, manifest)
        written = {kind: read_manifest(results.run_folder(root, kind, run_id)) for kind in schemas.RESULT_KINDS}
        numbers |= {
            _short_kind(kind): sum(entry.n_rows for entry in written[kind].files.values())
            for kind in ("neuron_scores", "probe_fits", "features")
        }
        numbers["bytes"] = sum(map(stored_bytes, written.values()))
    return run_id


def _finish(run: RunReference, best_parts: list[str], dataset_manifest: Manifest, manifest: Manifest) -> str:
    labels = _labels(run)
    tables = finished_tables(data_root(), run.run_id, run.layers, best_parts)
    tables |= {
        "features": [features_table(run.run_id, labels)],
        "test_labels": [labels_of_test(run.run_id, labels)],
        "runs": [runs_table(run, dataset_manifest, manifest)],
    }
    spec, digest = run.probing.model_dump(mode="json"), _run_digest(run.probing, dataset_manifest, manifest)
    results.write_run(data_root(), run.run_id, tables, spec=spec, digest=digest)
    return run.run_id


def finished_tables(
    root: Location, run_id: str, layers: Sequence[int], best_parts: Sequence[str]
) -> dict[str, Iterable[pa.Table]]:
    """Scores with q-values, fits and supports of a run, read from its parts one layer at a time as they are asked for."""
    names = [results.layer_part(layer) for layer in layers]

    def parts(kind: str, names: Sequence[str]) -> Iterator[pa.Table]:
        return (results.read_part(root, run_id, part, kind) for part in names)

    rates = run_rates(_of_layers(root, run_id, layers, "neuron_scores", P_VALUE_COLUMNS))
    return {
        "neuron_scores": (with_q_values(table, rates) for table in parts("neuron_scores", names)),
        "probe_fits": parts("probe_fits", [*names, *best_parts]),
        "probe_supports": parts("probe_supports", [*names, *best_parts]),
        "test_predictions": parts("test_predictions", [*names, *best_parts]),
    }


P_VALUE_COLUMNS = ("feature", "p_value")


def run_rates(layers: Iterable[pa.Table]) -> false_discoveries.FamilyRates:
    """The run's false discovery rates: one hypothesis a feature and layer, that its best neuron is better than chance.

    Parameters
    ----------
    layers:
        neuron_scores of each layer, of which `P_VALUE_COLUMNS` are read.
    """
    return false_discoveries.FamilyRates(
        [false_discoveries.smallest_p_value(p_values) for table in layers for _, p_values in _families(table)]
    )


def with_q_values(table: pa.Table, rates: false_discoveries.FamilyRates) -> pa.Table:
    """A layer's neuron_scores with its q-values filled in."""
    column = np.ones(table.num_rows, np.float32)
    for rows, p_values in _families(table):
        column[rows] = rates.q_values(p_values)
    at = schemas.NEURON_SCORES.get_field_index("q_value")
    return table.set_column(at, schemas.NEURON_SCORES.field(at), pa.array(column, pa.float32()))


def _families(table: pa.Table) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Rows and p-values of each feature of a layer."""
    codes, p_values = _feature_codes(table), table.column("p_value").to_numpy()
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        yield rows, p_values[rows]


def _feature_codes(table: pa.Table) -> NDArray[np.int32]:
    return table.column("feature").combine_chunks().dictionary_encode().indices.to_numpy()


def features_table(run_id: str, labels: LabelMatrix) -> pa.Table:
    """One row per feature: how many rows and groups it has, in each split."""
    # A target has no classes: none of its rows counts as positive.
    known = -np.isfinite(labels.targets).astype(np.int8)
    every = [
        ("classification", labels.features, labels.levels, labels.labels),
        ("regression", labels.regression_features, labels.regression_levels, known),
    ]
    rows = []
    for task_name, features, levels, signs in every:
        for feature, level, y in zip(features, levels, signs.T, strict=True):
            row: dict[str, object] = {"run_id": run_id, "feature": feature, "task": task_name, "level": level}
            groups_in: list[set[int]] = []
            for code, split in enumerate(schemas.SPLITS):
                inside = (labels.split == code) & (y != 0)
                positive = inside & (y > 0)
                groups_in.append(set(labels.groups[inside].tolist()))
                row[f"n_{split}"] = int(inside.sum())
                row[f"n_{split}_positive"] = int(positive.sum())
                row[f"n_{split}_groups"] = len(groups_in[-1])
                row[f"n_{split}_groups_positive"] = len(np.unique(labels.groups[positive]))
            row["n_shared_groups"] = sum(map(len, groups_in)) - len(set().union(*groups_in))
            row["prevalence"] = float((y > 0).sum() / max(1, (y != 0).sum()))
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=schemas.FEATURES)


def runs_table(run: RunReference, dataset: Manifest, activations: Manifest) -> pa.Table:
    """The run's one row of provenance."""
    facts = activations.facts
    row = {
        "run_id": run.run_id,
        "study": run.study,
        "model": run.model.short_name,
        "revision": facts["revision"],
        "weights_digest": facts["weights_digest"],
        "tokenizer_digest": facts["tokenizer_digest"],
        "collection": run.collection.collection,
        "dataset_digest": dataset.digest,
        "activations_digest": activations.digest,
        "probing_digest": config.digest(run.probing, version=config.PROBING_VERSION),
        "hook": facts["hook"],
        "pooling": facts["pooling"],
        "layers": list(facts["layers"]),
        "n_neurons": max(facts["n_neurons_by_layer"]),
        "n_rows": facts["n_rows"],
        "n_sequences": facts["n_sequences"],
        "n_tokens": facts["n_tokens"],
        "storage_dtype": facts["storage_dtype"],
        "model_dtype": facts["model_dtype"],
        "attention": facts["attention"],
        "split_mode": run.probing.split,
        "seed": run.probing.seed,
        "max_clipped_fraction": facts["max_clipped_fraction"],
        "max_quantisation_error": facts["max_quantisation_error"],
        "quantisation_error_bound": facts["quantisation_error_bound"],
        "spec": json.dumps(
            {
                "model": run.model.model_dump(mode="json"),
                "collection": run.collection.model_dump(mode="json"),
                "probing": run.probing.model_dump(mode="json"),
                "extraction": dict(activations.spec),
            },
            sort_keys=True,
        ),
        "package_versions": json.dumps(package_versions(), sort_keys=True),
    }
    return pa.Table.from_pylist([row], schema=schemas.fragment("runs"))
