"""Load, publish, queries and size of a series of checkpoints, on synthetic results: what each costs as the series grows.

    python -m benchmarks.bench_warehouse [--checkpoints 6] [--layers 24] [--neurons 1920] [--features 26] [--outside-only]

Each checkpoint is loaded and published by itself, as a scan of a folder does it. Scores are random numbers, so nothing of them
can be compressed away; predictions on test rows, and so table `comparisons`, are left out. Once with all scores in the
database, once with those that are not shortlisted read from their fragments.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from sparse_probing import schemas
from sparse_probing.config import ExtractionSpec, ModelSpec, ProbingSpec
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import connect
from sparse_probing.warehouse.publishing import Publisher

K_VALUES = (1, 2, 4, 8, 16, 32, 64, 128)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

QUERIES = {
    "rankings of one feature, one checkpoint": """
        select layer, neuron, test_mcc from neuron_rankings
        where run_id = '{last}' and feature = 'feature-0' order by rank limit 20""",
    "best neuron of every feature, one checkpoint": "from best_neuron_per_feature where run_id = '{last}'",
    "best neuron of every feature, all checkpoints": "from best_neuron_per_feature",
    "best neurons of one feature through all": "from checkpoint_trajectories where feature = 'feature-0'",
    "the same neurons of one feature through all": "from checkpoint_neurons where feature = 'feature-0'",
    "changes of one feature": "from checkpoint_changes where feature = 'feature-0'",
    "sparsity curves, one checkpoint": "from sparsity_curves where run_id = '{last}'",
    "one neuron on all features, all checkpoints": """
        select run_id, feature, test_mcc from neuron_scores where layer = 3 and neuron = 7""",
    "scores above 0.9, all checkpoints": "select count(*) from neuron_scores where test_mcc > 0.9",
}


def run_id(checkpoint: int) -> str:
    """Of a checkpoint's run."""
    return f"{checkpoint:016x}"


def _values(schema: pa.Schema, n_rows: int, generator: np.random.Generator, known: dict[str, object]) -> pa.Table:
    """Rows with what is known, and for the rest random numbers, false or the word ``synthetic``."""
    columns = []
    for field in schema:
        if field.name in known:
            value = known[field.name]
            scalar = isinstance(value, str | int | float | bool | datetime)
            column = pa.array([value] * n_rows, field.type) if scalar else pa.array(value).cast(field.type)
        elif pa.types.is_floating(field.type):
            column = pa.array(generator.random(n_rows, np.float32)).cast(field.type)
        elif pa.types.is_string(field.type):
            column = pa.array(["synthetic"] * n_rows)
        else:
            column = pa.array(np.zeros(n_rows, np.int8)).cast(field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def _tiled(names: list[str], repeats: int) -> pa.Array:
    """(len(names) × repeats,) each name in a row."""
    return pa.array(names).take(pa.array(np.repeat(np.arange(len(names)), repeats)))


def _scores(options: argparse.Namespace, run: str, generator: np.random.Generator) -> Iterator[pa.Table]:
    """neuron_scores, a layer at a time."""
    features = [f"feature-{i}" for i in range(options.features)]
    n_rows = options.neurons * options.features
    for layer in range(options.layers):
        neurons = np.tile(np.arange(options.neurons, dtype=np.int32), options.features)
        known = {
            "run_id": pa.array([run]).take(pa.array(np.zeros(n_rows, np.int32))),
            "feature": _tiled(features, options.neurons),
            "layer": np.full(n_rows, layer, np.int32),
            "neuron": neurons,
            "layer_rank": neurons + 1,
            "shortlisted": neurons < options.shortlist,
            "converged": np.ones(n_rows, bool),
            "best_direction": np.ones(n_rows, np.int8),
        }
        yield _values(schemas.NEURON_SCORES, n_rows, generator, known)


def write_checkpoint(root: Location, options: argparse.Namespace, checkpoint: int) -> None:
    """The finished run of a checkpoint."""
    run, generator = run_id(checkpoint), np.random.default_rng(checkpoint)
    features = [f"feature-{i}" for i in range(options.features)]
    spec = {
        "model": ModelSpec(id="synthetic/model", revision=f"step{checkpoint}").model_dump(mode="json"),
        "probing": ProbingSpec().model_dump(mode="json"),
        "extraction": ExtractionSpec().model_dump(mode="json"),
    }
    runs = {
        "run_id": run,
        "model": "model",
        "revision": f"step{checkpoint}",
        "weights_digest": f"{checkpoint:064x}",
        "layers": pa.array([list(range(options.layers))], pa.list_(pa.int32())),
        "n_neurons": options.layers * options.neurons,
        "spec": json.dumps(spec),
        "created_at": BEGAN + timedelta(hours=checkpoint),
    }
    counts = {f"n_{split}{suffix}": 100 for split in schemas.SPLITS for suffix in ("", "_positive", "_groups")}
    of_features = {"run_id": run, "feature": pa.array(features), "task": "classification", **counts}
    places = options.features * options.layers * len(K_VALUES)
    fit_ids = [f"{run}-{i}" for i in range(places)]
    sizes = np.resize(np.array(K_VALUES), places)
    fits = {
        "run_id": run,
        "fit_id": pa.array(fit_ids),
        "feature": _tiled(features, options.layers * len(K_VALUES)),
        "layer": np.resize(np.repeat(np.arange(options.layers), len(K_VALUES)), places),
        "k": sizes,
        "method": "heuristic_sparsity_sweep",
        "variant": "real",
        "status": "ok",
        "converged": True,
    }
    supports = {
        "run_id": run,
        "fit_id": pa.array(fit_ids).take(pa.array(np.repeat(np.arange(places), sizes))),
        "position_in_support": np.concatenate([np.arange(size) for size in sizes]),
        "neuron": np.concatenate([np.arange(size) for size in sizes]),
    }
    tables = {
        "runs": [_values(schemas.RUNS, 1, generator, runs)],
        "features": [_values(schemas.FEATURES, options.features, generator, of_features)],
        "neuron_scores": _scores(options, run, generator),
        "probe_fits": [_values(schemas.PROBE_FITS, places, generator, fits)],
        "probe_supports": [_values(schemas.PROBE_SUPPORTS, int(sizes.sum()), generator, supports)],
        "test_labels": [schemas.TEST_LABELS.empty_table()],
        "test_predictions": [schemas.TEST_PREDICTIONS.empty_table()],
    }
    results.write_run(root, run, tables, spec={}, digest="synthetic")


def _seconds(began: float) -> float:
    return time.perf_counter() - began


def run_series(options: argparse.Namespace, most_scores: int) -> float:
    """Load and publish every checkpoint, then ask; returns seconds of loading and publishing the last one."""
    with tempfile.TemporaryDirectory() as folder:
        root, working, snapshot = Location.open(folder), Path(folder, "working.duckdb"), Path(folder, "results.duckdb")
        publisher = Publisher(root, working, snapshot, lambda rows: (np.zeros(0), np.zeros(0)), print, most_scores)
        print("checkpoint  load s  publish s  working GB  published GB", flush=True)

        def step(checkpoint: int, *, publish: bool) -> float:
            write_checkpoint(root, options, checkpoint)
            began = time.perf_counter()
            publisher.load([run_id(checkpoint)])
            load = _seconds(began)
            began = time.perf_counter()
            if publish:
                publisher.publish()
            taken = _seconds(began)
            sizes = [path.stat().st_size / 1e9 if path.exists() else 0.0 for path in (working, snapshot)]
            print(f"{checkpoint:10d}  {load:6.1f}  {taken:9.1f}  {sizes[0]:10.2f}  {sizes[1]:12.2f}", flush=True)
            return load + taken

        last = 0.0
        for checkpoint in range(options.checkpoints):
            publish = checkpoint == options.checkpoints - 1 or checkpoint % options.publish_every == 0
            last = step(checkpoint, publish=publish)
        with connect(snapshot) as connection:
            for name, question in QUERIES.items():
                seconds = []
                for _ in range(3):
                    began = time.perf_counter()
                    rows = connection.execute(question.format(last=run_id(options.checkpoints - 1))).fetchall()
                    seconds.append(_seconds(began))
                print(
                    f"{name:45s} {len(rows):8,} rows  first {seconds[0]:8.3f} s  then {min(seconds):8.3f} s", flush=True
                )
        print("the first checkpoint again, three times over")
        for _ in range(3):
            for kind in schemas.RESULT_KINDS:
                results.run_folder(root, kind, run_id(0)).delete()
            options.shortlist += 1
            step(0, publish=False)
        return last


def main() -> None:
    """Print a line for each checkpoint, the queries at the end, and what replaced runs leave, in both ways."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=6)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--neurons", type=int, default=1920)
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--shortlist", type=int, default=10)
    parser.add_argument("--publish-every", type=int, default=1)
    parser.add_argument("--outside-only", action="store_true", help="for a series whose copies would not fit")
    options = parser.parse_args()
    per_run = options.layers * options.neurons * options.features
    print(f"{options.checkpoints} checkpoints of {per_run:,} rows of neuron_scores")
    if not options.outside_only:
        print("\nall scores in the database")
        inside = run_series(options, sys.maxsize)
    print("\nscores read from their fragments")
    outside = run_series(options, 0)
    if not options.outside_only:
        print(
            f"\nthe last checkpoint, loaded and published: {inside:.1f} s against {outside:.1f} s, ratio {inside / outside:.1f}"
        )


if __name__ == "__main__":
    main()
