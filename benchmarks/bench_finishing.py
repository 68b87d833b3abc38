"""Peak memory of choosing layers and finishing a run, one layer at a time against all layers at once, on synthetic parts.

    python -m benchmarks.bench_finishing [--layers 8] [--neurons 16384] [--features 100] [--streaming-only]

Each side runs in a process of its own, of which the system tells the most memory that it held.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from sparse_probing import schemas
from sparse_probing.runs.finishing import best_layers_of_run, finished_tables, read_summary
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location

RUN = "0123456789abcdef"


def write_layer(root: Location, layer: int, n_neurons: int, n_features: int) -> None:
    """A part as a layer leaves it: random scores of every neuron on every feature, and one fit a feature."""
    generator = np.random.default_rng(layer)
    n_rows = n_neurons * n_features
    columns = []
    for field in schemas.NEURON_SCORES:
        if field.name == "run_id":
            columns.append(pa.array([RUN]).take(pa.array(np.zeros(n_rows, np.int32))))
        elif field.name == "feature":
            names = pa.array([f"feature-{i}" for i in range(n_features)])
            columns.append(names.take(pa.array(np.repeat(np.arange(n_features), n_neurons))))
        elif field.name == "shortlisted":
            columns.append(pa.array(np.tile(np.arange(n_neurons) < 100, n_features)))
        elif field.name in ("layer", "neuron", "layer_rank"):
            values = np.full(n_rows, layer) if field.name == "layer" else np.tile(np.arange(n_neurons), n_features)
            columns.append(pa.array(values.astype(np.int32)))
        else:
            columns.append(pa.array(generator.random(n_rows, np.float32)).cast(field.type, safe=False))
    tables = {
        "neuron_scores": pa.Table.from_arrays(columns, schema=schemas.NEURON_SCORES),
        "probe_fits": schemas.PROBE_FITS.empty_table(),
        "probe_supports": schemas.PROBE_SUPPORTS.empty_table(),
        "test_predictions": schemas.TEST_PREDICTIONS.empty_table(),
    }
    results.write_part(root, RUN, results.layer_part(layer), tables)


def stream(folder: str, layers: int) -> None:
    """As a study does it."""
    root = Location.open(folder)
    summaries = [read_summary(root, RUN, layer) for layer in range(layers)]
    best_layers_of_run(schemas.FEATURES.empty_table(), summaries)
    tables = finished_tables(root, RUN, range(layers), [], summaries)
    for kind in results.PART_KINDS:
        results.write_fragment(root, kind, RUN, tables[kind], spec={}, digest="synthetic")


def all_at_once(folder: str, layers: int) -> None:
    """Every layer in memory before the first is written."""
    root = Location.open(folder)
    summaries = [read_summary(root, RUN, layer) for layer in range(layers)]
    tables = {kind: list(found) for kind, found in finished_tables(root, RUN, range(layers), [], summaries).items()}
    for kind, found in tables.items():
        results.write_fragment(root, kind, RUN, found, spec={}, digest="synthetic")


def _measured(work: Callable[[str, int], None], folder: str, layers: int, answer: multiprocessing.Queue) -> None:
    began = time.perf_counter()
    work(folder, layers)
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, time.perf_counter() - began))


def measure(work: Callable[[str, int], None], folder: str, layers: int) -> tuple[float, float]:
    """Peak GiB and seconds of some work in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_measured, args=(work, folder, layers, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} ended with exit code {process.exitcode}")
    peak, seconds = answer.get()
    return float(peak), float(seconds)


def main() -> None:
    """Print both peaks and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--neurons", type=int, default=16384)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--streaming-only", action="store_true", help="where all layers at once would not fit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for layer in range(options.layers):
            write_layer(Location.open(folder), layer, options.neurons, options.features)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet")) / 1024**3
        n_rows = options.layers * options.neurons * options.features
        print(f"{n_rows:,} rows of neuron_scores in {options.layers} parts, {size:.1f} GiB")
        peak, seconds = measure(stream, folder, options.layers)
        print(f"one layer at a time   {peak:5.2f} GiB at most, {seconds:6.1f} s")
        if not options.streaming_only:
            other, other_seconds = measure(all_at_once, folder, options.layers)
            print(f"all layers at once    {other:5.2f} GiB at most, {other_seconds:6.1f} s")
            print(f"ratio                 {other / peak:5.2f}")


if __name__ == "__main__":
    main()
