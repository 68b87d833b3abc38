"""Single-neuron scores: every neuron with every metric, against thirty neurons by scikit-learn without any.

Prints a table of ratios; both sides run in this process, in turns, on the same arrays, the same split and one BLAS thread.
Scoring uses a second core where there is one; saga cannot.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks.real import capture
from sparse_probing.probes.single import score_features, score_neurons
from sparse_probing.probes.single.counts import quantise
from sparse_probing.probes.splits import reference_split

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


def side_by_side(*functions: Callable[[], object], repeats: int = 7) -> list[float]:
    """Median seconds of each, taken in turns so that what else the machine does falls on all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, times, strict=True):
            begun = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]


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
    real = capture((12, 13), positions=8)
    keep = np.random.default_rng(0).permutation(len(real.X))[:N_SAMPLES]
    split = reference_split(len(keep))
    levels, offset, scale = quantise(real.X[keep, :N_NEURONS], split == 0)
    floats = offset + scale * levels
    labels = {name: y[keep] for name, y in real.labels().items()}
    print(f"{len(keep)} samples, {N_NEURONS} neurons of SmolLM2-135M; medians over repeats\n")
    print("| what | seconds | against | seconds | ratio | at most |")
    print("|---|---|---|---|---|---|")
    ours, theirs = [], []
    with threadpool_limits(1):
        for name, y in labels.items():
            one, reference = side_by_side(
                lambda y=y: score_neurons(levels, y, split=split, offset=offset, scale=scale),
                lambda y=y: top_thirty(floats, y, split),
                repeats=3,
            )
            ours.append(one)
            theirs.append(reference)
            print(
                f"| {name}: all neurons | {one:.3f} | top {TOP} by saga | {reference:.3f} | {one / reference:.3f} | |"
            )
        Y = np.stack(list(labels.values())[:N_FEATURES], axis=1)
        nine, alone = side_by_side(
            lambda: score_features(levels, Y, split=split), lambda: score_neurons(levels, Y[:, 0], split=split)
        )
    one, reference = statistics.mean(ours), statistics.mean(theirs)
    print(
        f"| all neurons, all metrics, mean of {len(ours)} features | {one:.3f} | top {TOP} by scikit-learn saga, "
        f"no metrics | {reference:.3f} | {one / reference:.3f} | 0.15 |"
    )
    print(
        f"| the same, per neuron | {one / N_NEURONS:.2e} | per neuron | {reference / TOP:.2e} "
        f"| 1/{reference / TOP / one * N_NEURONS:.0f} | 1/500 |"
    )
    print(
        f"| nine features together | {nine:.3f} | nine times one feature | {9 * alone:.3f} | {nine / (9 * alone):.2f} "
        "| 0.50 |"
    )
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
