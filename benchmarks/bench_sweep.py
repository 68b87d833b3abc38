"""The telescopic sweep against the same sweep by scikit-learn's saga elastic net, same penalties, same candidates.

Prints seconds, their ratio, and the mean validation PR-AUC over k of both, on real activations; one BLAS thread.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks.real import capture
from sparse_probing.probes import METHODS
from sparse_probing.probes.data import prepare
from sparse_probing.probes.experiments.heuristic import default_k_values
from sparse_probing.probes.experiments.telescopic import penalty
from sparse_probing.probes.metrics import score_metrics
from sparse_probing.probes.ranking import rank_neurons

FEATURES = ("language_en", "language_ru", "contains_digit", "leading_capital", "has_leading_space")
MAX_K = 256
MAX_ITER = 200


def saga_sweep(X: np.ndarray, y: np.ndarray, split: np.ndarray) -> dict[int, float]:
    """Elastic nets by saga from 256 neurons down, re-ranked by coefficient; validation PR-AUC by k."""
    train, validation = split == 0, split == 1
    data = prepare(X, y, split=split)
    kept = rank_neurons(data)[:MAX_K]
    values = X[:, kept].astype(np.float64)
    values /= 10 * np.maximum(values[train].std(axis=0), 1e-9)
    quality = {}
    strength = np.zeros(len(kept))
    columns = np.arange(len(kept))
    for k in sorted(default_k_values(MAX_K), reverse=True):
        strongest = np.argsort(-np.abs(strength), kind="stable")[:k]
        columns = columns[strongest]
        c, l1_ratio = penalty(k)
        model = LogisticRegression(
            C=c,
            l1_ratio=l1_ratio,
            penalty="elasticnet",
            solver="saga",
            class_weight="balanced",
            max_iter=MAX_ITER,
            random_state=0,
        ).fit(values[train][:, columns], y[train] > 0)
        strength = model.coef_[0]
        scores = model.decision_function(values[validation][:, columns])
        quality[k] = score_metrics(y[validation], scores)["pr_auc"]
    return quality


def main() -> None:
    """Run and print."""
    warnings.simplefilter("ignore")
    real = capture((12, 13), positions=8)
    order = np.random.default_rng(0).permutation(len(real.X))
    print(
        "| samples | feature | telescopic sweep s | saga sweep s | ratio | at most | PR-AUC | saga PR-AUC | converged "
        "| plain sweep s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for n_samples in (1000, 7000):
        X = real.X[order[:n_samples], :2048]
        split = np.random.default_rng(0).choice(3, n_samples, p=(0.6, 0.2, 0.2)).astype(np.int8)
        rows = []
        for name in FEATURES:
            y = real.labels()[name][order[:n_samples]]
            with threadpool_limits(1):
                begun = time.perf_counter()
                fits = METHODS["telescopic_sparsity_sweep"](X, y, split=split)
                ours = time.perf_counter() - begun
                begun = time.perf_counter()
                theirs = saga_sweep(X, y, split)
                reference = time.perf_counter() - begun
                begun = time.perf_counter()
                METHODS["heuristic_sparsity_sweep"](X, y, split=split)
                plain = time.perf_counter() - begun
            mine = float(np.mean([fit.metrics["validation"]["pr_auc"] for fit in fits]))
            rows.append((ours, reference, mine, float(np.mean(list(theirs.values()))), plain))
            converged = f"{sum(fit.converged for fit in fits)}/{len(fits)}"
            _print(n_samples, name, rows[-1], converged)
        _print(n_samples, "mean", tuple(np.mean(rows, axis=0)), "")


def _print(n_samples: int, name: str, row: tuple[float, ...], converged: str) -> None:
    ours, reference, mine, theirs, plain = row
    print(
        f"| {n_samples} | {name} | {ours:.3f} | {reference:.3f} | {ours / reference:.3f} | 0.20 | {mine:.4f} "
        f"| {theirs:.4f} | {converged} | {plain:.3f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
