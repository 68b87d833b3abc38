"""Certified probes over all neurons: seconds, gaps and objectives on real activations, and seconds at 16,384 neurons.

Beside the default search stands the optimum among the 50 neurons of largest mean difference, which is what one would
otherwise settle for; with ``--gurobi`` also Gurobi's integer model with lazy cuts.

    python -m benchmarks.bench_optimal [--layer 12] [--limit 60] [--gurobi]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from benchmarks.real import capture
from sparse_probing.probes.optimal import OptimalFit, fit_optimal, fit_optimal_path, scale_for_optimal


def report(name: str, y: NDArray[np.int64], fit: OptimalFit, beside: str = "") -> None:
    phases = fit.phase_seconds
    print(
        f"{name:<22}{(y > 0).mean():>6.2f}{fit.support.size:>3}{fit.objective:>10.2f}{fit.gap:>9.1e}  {fit.status:<11}"
        f"{fit.n_candidates_left:>6}{fit.n_nodes:>7}{fit.seconds:>8.2f}"
        f"{phases['root']:>8.2f}{phases['incumbent']:>8.2f}{phases['search']:>8.2f}{beside}",
        flush=True,
    )


HEADER = (
    f"{'feature':<22}{'share':>6}{'k':>3}{'objective':>10}{'gap':>9}  {'status':<11}{'left':>6}{'nodes':>7}{'s':>8}"
    f"{'root':>8}{'local':>8}{'search':>8}"
)


def real(layer: int, limit: float, beside_gurobi: bool) -> None:
    data = capture([layer])
    X, labels = data.X.astype(np.float64), data.labels()
    X /= scale_for_optimal(X)
    print(f"\nreal activations, layer {layer}: {X.shape[0]} samples × {X.shape[1]} neurons, divided by 10 std")
    print(HEADER + f"{'50 cand.':>10}" + (f"{'gurobi s':>10}{'ratio':>7}" if beside_gurobi else ""))
    seconds: dict[int, list[float]] = {4: [], 8: []}
    for name, y in labels.items():
        fifty = np.argsort(-np.abs(X[y > 0].mean(axis=0) - X[y < 0].mean(axis=0)))[:50]
        for k in seconds:
            fit = fit_optimal(X, y, k, standardise=False, time_limit_seconds=limit)
            few = fit_optimal(X, y, k, standardise=False, time_limit_seconds=limit, candidates=fifty)
            assert fit.objective <= few.objective * (1 + 1e-5), "pre-selected candidates did better"
            seconds[k].append(fit.seconds if fit.status == "optimal" else np.inf)
            beside = f"{100 * (few.objective / fit.objective - 1):>9.2f}%"
            if beside_gurobi:
                lazy = fit_optimal(X, y, k, standardise=False, time_limit_seconds=limit, solver="gurobi")
                late = " " if lazy.status == "optimal" else "+"
                beside += f"{lazy.seconds:>9.2f}{late}{lazy.seconds / fit.seconds:>7.1f}"
            report(name, y, fit, beside)
    for k, each in seconds.items():
        ordered = sorted(each)
        print(f"k = {k}: median {statistics.median(each):.2f} s, nine of ten within {ordered[8]:.2f} s")
    began = time.perf_counter()
    fits = fit_optimal_path(X, labels["leading_capital"], range(1, 9), standardise=False, time_limit_seconds=limit)
    print(
        f"path k = 1..8 of leading_capital: {time.perf_counter() - began:.2f} s, worst gap {max(f.gap for f in fits):.1e}"
    )


def synthetic(limit: float, n: int = 2700, d: int = 16_384) -> None:
    """Planted in independent neurons, and in rectified neurons with 64 common factors."""
    print(f"\nsynthetic: {n} samples × {d} neurons\n{HEADER}")
    for name in ("planted", "correlated", "correlated_noisy"):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((n, d), dtype=np.float32)
        if name != "planted":
            X += rng.standard_normal((n, 64), dtype=np.float32) @ rng.standard_normal((64, d), dtype=np.float32) / 8
            X = np.where(X > 0, X, 0.1 * X)
        signal = X[:, rng.choice(d, 8, replace=False)].sum(axis=1)
        signal += rng.standard_normal(n) * (4.0 if name.endswith("noisy") else 1.0)
        y = np.where(signal > np.quantile(signal, 0.8), 1, -1)
        X /= scale_for_optimal(X).astype(np.float32)
        for k in (4, 8):
            report(name, y, fit_optimal(X, y, k, standardise=False, time_limit_seconds=limit))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a fit")
    parser.add_argument("--gurobi", action="store_true", help="compare with Gurobi's integer model (minutes)")
    options = parser.parse_args()
    synthetic(options.limit)
    real(options.layer, options.limit, options.gurobi)


if __name__ == "__main__":
    main()
