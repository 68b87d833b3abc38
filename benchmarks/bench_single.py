"""Single-neuron scores: every neuron with every metric, against thirty neurons by scikit-learn without any.

Prints a table of ratios; both sides run in this process, one after the other, on the same arrays and one BLAS thread.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from sparse_probing.probes.single import score_features, score_neurons

N_NEURONS = 2048
N_SAMPLES = 7000
N_FEATURES = 9
TOP = 30


def layer(n_samples: int, n_neurons: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels of heavy-tailed, rectified activations with a few planted neurons; one-against-rest labels; a split."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, N_FEATURES, n_samples)
    Y = np.where(label[:, None] == np.arange(N_FEATURES), 1, -1).astype(np.int8)
    X = np.empty((n_samples, n_neurons), np.uint8)
    for start in range(0, n_samples, 4096):
        rows = slice(start, min(start + 4096, n_samples))
        latent = rng.standard_normal((rows.stop - start, n_neurons), dtype=np.float32)
        for feature in range(N_FEATURES):
            latent[:, feature * 3 : feature * 3 + 3] += 1.5 * (label[rows] == feature)[:, None]
        X[rows] = np.clip(40 + 28 * np.where(latent > 0, latent, 0.2 * latent), 0, 255)
    return X, Y, rng.choice(3, n_samples, p=(0.6, 0.2, 0.2)).astype(np.int8)


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """The best of some runs."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


def top_thirty(X: np.ndarray, y: np.ndarray, split: np.ndarray) -> None:
    """Rank by mean difference, then one balanced saga regression for each of the best thirty; no metrics."""
    train = split == 0
    values = X[train].astype(np.float32)
    values /= 10 * np.maximum(values.std(axis=0), 1e-6)
    positive = y[train] > 0
    order = np.argsort(-np.abs(values[positive].mean(axis=0) - values[~positive].mean(axis=0)))
    for neuron in order[:TOP]:
        LogisticRegression(class_weight="balanced", solver="saga", max_iter=200).fit(values[:, [neuron]], positive)


def peak_memory() -> None:
    """Score a layer of 50,000 × 16,384 in this process and print seconds and peak resident gibibytes."""
    X, Y, split = layer(50_000, 16_384)
    begun = time.perf_counter()
    score_neurons(X, Y[:, 0], split=split)
    took = time.perf_counter() - begun
    print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    """Run and print."""
    warnings.simplefilter("ignore")
    X, Y, split = layer(N_SAMPLES, N_NEURONS)
    with threadpool_limits(1):
        one = seconds(lambda: score_neurons(X, Y[:, 0], split=split))
        nine = seconds(lambda: score_features(X, Y, split=split))
        reference = seconds(lambda: top_thirty(X, Y[:, 0], split), repeats=2)
        small = score_features(X[:600], Y[:600], split=split[:600])
        few = seconds(lambda: score_features(X[:600], Y[:600], split=split[:600]))
    print(f"{N_SAMPLES} samples, {N_NEURONS} neurons, {len(small)} features on shared rows\n")
    print("| what | seconds | against | seconds | ratio | at most |")
    print("|---|---|---|---|---|---|")
    print(
        f"| all neurons, all metrics | {one:.3f} | top {TOP} by scikit-learn saga, no metrics | {reference:.3f} "
        f"| {one / reference:.3f} | 0.15 |"
    )
    print(
        f"| nine features together | {nine:.3f} | nine times one feature | {9 * one:.3f} | {nine / (9 * one):.2f} | 0.50 |"
    )
    print(f"| nine features, 600 samples | {few:.3f} | per feature | {few / N_FEATURES:.4f} | | |")
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.bench_single import peak_memory; peak_memory()"],
        capture_output=True,
        text=True,
        check=True,
    )
    took, peak = map(float, done.stdout.split())
    print(f"| 50,000 × 16,384 levels | {took:.1f} | peak memory {peak:.2f} GiB | | {peak / 4:.2f} of 4 GiB | 1 |")


if __name__ == "__main__":
    main()
