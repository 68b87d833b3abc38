"""The stages of a run, each read → compute → write; the caller decides on order and concurrency.

A stage that is done already returns at once, so that calling one again is always safe. The caller holds the locks (`store.locks`)
that keep other processes with the same data folder from the same run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sparse_probing.runs import finishing
from sparse_probing.runs.features import features_table, labels_of_test
from sparse_probing.runs.inputs import forget_inputs, keep_summary, layer_summaries, run_inputs, run_labels
from sparse_probing.runs.planned import PlannedRun, run_digest, runs_table
from sparse_probing.runs.tables import best_layer_tables, layer_tables
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.matrices import read_layer


def probe_layer(root: Location, run: PlannedRun, layer: int) -> str:
    """Score every neuron of a layer on every feature, and fit the study's probes; returns the name of the run's part."""
    part = results.layer_part(layer)
    if not results.is_part_done(root, run.run_id, part):
        started = time.perf_counter()
        matrix = read_layer(root / run.activations, layer)
        tables = layer_tables(run_inputs(root, run), matrix)
        results.write_part(root, run.run_id, part, tables, seconds=time.perf_counter() - started)
        keep_summary(root, run, layer, finishing.summarise(tables["neuron_scores"], tables["probe_fits"]))
    return part


def choose_layers(root: Location, run: PlannedRun) -> dict[int, list[str]]:
    """The layers that hold some feature's best neuron by validation, and the features of each; all layers are probed by now."""
    features = features_table(run.run_id, run_labels(root, run))
    chosen: dict[int, list[str]] = {}
    for feature, layer in finishing.best_layers_of_run(features, layer_summaries(root, run)).items():
        chosen.setdefault(layer, []).append(feature)
    return dict(sorted(chosen.items()))


def probe_best_layer(root: Location, run: PlannedRun, layer: int, features: Sequence[str]) -> str:
    """Fit the costlier methods for the features that do best on this layer; returns the name of the run's part."""
    part = results.best_part(layer)
    if not results.is_part_done(root, run.run_id, part):
        started = time.perf_counter()
        matrix = read_layer(root / run.activations, layer)
        tables = best_layer_tables(run_inputs(root, run), matrix, features)
        results.write_part(root, run.run_id, part, tables, seconds=time.perf_counter() - started)
    return part


def finish_run(root: Location, run: PlannedRun, best_parts: Sequence[str]) -> str:
    """Put the layers together, correct for the number of tests, and write the run's result tables; returns its id."""
    if not results.is_finished(root, run.run_id):
        started = time.perf_counter()
        parts = [*map(results.layer_part, run.layers), *best_parts]
        of_parts = results.part_seconds(root, run.run_id, parts)
        dataset, activations = read_manifest(root / run.dataset), read_manifest(root / run.activations)
        labels = run_labels(root, run)
        summaries = layer_summaries(root, run)
        tables = finishing.finished_tables(root, run.run_id, run.layers, best_parts, summaries)
        tables |= {
            "features": [features_table(run.run_id, labels)],
            "test_labels": [labels_of_test(run.run_id, labels)],
            "runs": [runs_table(run, dataset, activations)],
        }
        digest = run_digest(run.probing, dataset_digest=dataset.digest, activations_digest=activations.digest)
        results.write_run(
            root,
            run.run_id,
            tables,
            spec=run.probing.model_dump(mode="json"),
            digest=digest,
            seconds=lambda: None if of_parts is None else of_parts + time.perf_counter() - started,
        )
    forget_inputs(root, run)
    return run.run_id
