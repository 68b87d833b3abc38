"""What one layer of a run costs to probe, taken apart: processor time of each stage, on synthetic levels, by what it grows with.

    python -m benchmarks.bench_layer [--neurons 4096] [--rows 10000] [--features 10]

The stages are those of `runs.tables.layer_tables` with the settings of a study that sets none, in one thread. Each line ends with the
figure that `benchmarks.plan_scale` multiplies. Processor time varies less with what else runs than wall-clock time does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
from threadpoolctl import threadpool_limits

from sparse_probing.config import ProbingSpec
from sparse_probing.probes import single
from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.uncertainty import permutations
from sparse_probing.runs.inputs import shared_inputs
from sparse_probing.runs.tables import layer_tables
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.store.labels import LabelMatrix
from sparse_probing.store.matrices import LayerMatrix

N_TOKENS = 500


def layer(n_rows: int, n_neurons: int, n_features: int, seed: int = 0) -> tuple[LayerMatrix, LabelMatrix]:
    """Heavy-tailed levels with a few neurons that answer to each feature; features of 2 to 40 % of the rows; groups of five rows."""
    generator = np.random.default_rng(seed)
    share = np.geomspace(0.02, 0.4, n_features)
    labels = np.where(generator.random((n_rows, n_features)) < share, 1, -1).astype(np.int8)
    codes = (generator.standard_exponential((n_rows, n_neurons), dtype=np.float32) * 24).clip(0, 255)
    for feature in range(n_features):
        columns = generator.choice(n_neurons, 3, replace=False)
        codes[np.ix_(labels[:, feature] > 0, columns)] += 60
    matrix = LayerMatrix(
        layer=0,
        neurons=np.arange(n_neurons, dtype=np.int32),
        codes=codes.clip(0, 255).astype(np.uint8),
        offset=np.zeros(n_neurons, np.float32),
        scale=np.full(n_neurons, 0.01, np.float32),
    )
    groups = np.arange(n_rows, dtype=np.int64) // 5
    split = np.array([0, 0, 0, 1, 2], np.int8)[groups % 5]
    names = tuple(f"feature-{i}" for i in range(n_features))
    known = LabelMatrix(
        features=names,
        levels=("token",) * n_features,
        labels=labels,
        regression_features=(),
        regression_levels=(),
        targets=np.zeros((n_rows, 0)),
        split=split,
        groups=groups,
        token_ids=generator.integers(0, N_TOKENS, n_rows),
    )
    return matrix, known


def main() -> None:
    """Print processor time of each stage, and bytes of what a layer leaves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--neurons", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--features", type=int, default=10)
    options = parser.parse_args()
    n_neurons, n_rows, n_features = options.neurons, options.rows, options.features
    probing = ProbingSpec()
    matrix, labels = layer(n_rows, n_neurons, n_features)
    print(f"{n_neurons:,} neurons, {n_rows:,} rows, {n_features} features, one thread; core-seconds")
    with threadpool_limits(1):
        began = time.process_time()
        inputs = shared_inputs("0123456789abcdef", probing, labels, [n_neurons])
        basis = time.process_time() - began
        print(f"random basis, once a run   {basis:8.2f}   {basis / n_neurons**3 * 1e12:8.2f} ps a neuron cubed")

        began = time.process_time()
        values = matrix.values()
        _ = (values - values[labels.split == 0].mean(axis=0)) @ inputs.rotations[n_neurons]
        rotating = time.process_time() - began
        print(
            f"change of basis, a layer   {rotating:8.2f}   {rotating / n_rows / n_neurons**2 * 1e12:8.2f} ps a row and neuron squared"
        )

        arrays = {"split": labels.split, "offset": matrix.offset, "scale": matrix.scale}
        began = time.process_time()
        single.score_features(matrix.codes, SignedLabels(labels.labels), labels.groups, n_threads=1, **arrays)
        scoring = time.process_time() - began
        pairs = n_neurons * n_features
        print(f"scores of every neuron     {scoring:8.2f}   {scoring / pairs * 1e6:8.2f} us a neuron and feature")

        began = time.process_time()
        permutations.max_null(matrix.codes, permutations=inputs.permutations)
        null = time.process_time() - began
        print(
            f"permutation null           {null:8.2f}   {null / pairs / n_rows * 1e9:8.3f} ns a neuron, feature and row"
        )

        began = time.process_time()
        tables = layer_tables(inputs, matrix)
        whole = time.process_time() - began
    fitting = whole - rotating - scoring - null
    print(f"fits, baselines, intervals {fitting:8.2f}   {fitting / n_features:8.2f} s a feature")
    print(f"the layer in all           {whole:8.2f}")
    with tempfile.TemporaryDirectory() as folder:
        root = Location.open(folder)
        results.write_part(root, inputs.run_id, results.layer_part(0), tables)
        parquet = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        database = Path(folder) / "results.duckdb"
        began = time.process_time()
        with duckdb.connect(str(database)) as connection:
            scores = next(Path(folder).rglob("neuron_scores*.parquet"))
            connection.execute("create table neuron_scores as select * from read_parquet(?)", [str(scores)])
        loading = time.process_time() - began
        loaded = database.stat().st_size
    print(f"results as Parquet         {parquet:8,} bytes, {parquet / pairs:.0f} a neuron and feature")
    print(f"its scores in DuckDB       {loaded:8,} bytes, {loaded / pairs:.0f} a neuron and feature")
    print(f"loading them               {loading:8.2f}   {loading / pairs * 1e6:8.2f} us a neuron and feature")


if __name__ == "__main__":
    main()
