"""Sparse probes in random bases: what the neurons' own basis adds to a score.

`candidates` rotates the span of the best neurons, `whole` the whole layer; `prune` repeats iterative pruning in the
rotated layer. A fit's support numbers directions, not neurons, and its variant is ``random_rotation``.
"""

from __future__ import annotations

from dataclasses import replace

from sparse_probing.probes.data import ProbeData
from sparse_probing.probes.experiments.baselines import random_rotation, rotate
from sparse_probing.probes.experiments.heuristic import default_k_values, sweep_order
from sparse_probing.probes.ranking import rank_neurons
from sparse_probing.probes.registry import Request
from sparse_probing.probes.results import ProbeFit

N_CANDIDATES = 256


def candidates(request: Request) -> list[ProbeFit]:
    """Heuristic sweep over random directions of the span of the 256 best neurons."""
    kept = rank_neurons(request.data, request.ranking, scores=request.scores, rng=request.rng)[:N_CANDIDATES]
    return _sweep(request, _rotated(request, request.data.with_neurons(kept)))


def whole(request: Request) -> list[ProbeFit]:
    """Heuristic sweep over a random orthonormal basis of the whole layer."""
    return _sweep(request, _rotated(request, request.data))


def prune(request: Request) -> list[ProbeFit]:
    """Iterative pruning (see `optimal.prune`) in a random orthonormal basis of the whole layer."""
    from sparse_probing.probes.experiments import optimal

    rotated = replace(request, data=_rotated(request, request.data), scores=None)
    return [fit.with_variant("random_rotation") for fit in optimal.prune(rotated)]


def _rotated(request: Request, data: ProbeData) -> ProbeData:
    return rotate(data, random_rotation(data.n_neurons, request.rng))


def _sweep(request: Request, rotated: ProbeData) -> list[ProbeFit]:
    order = rank_neurons(rotated, request.ranking, rng=request.rng)
    k_values = request.k_values or default_k_values()
    fits = sweep_order(rotated, order, k_values, request.method, request.ranking, 1.0, request.n_bootstrap)
    return [fit.with_variant("random_rotation") for fit in fits]
