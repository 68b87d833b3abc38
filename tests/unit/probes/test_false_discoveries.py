"""False discovery rates equal those of an independent implementation, and families are judged by their best neuron."""

from __future__ import annotations

import numpy as np
from scipy.stats import false_discovery_control

from sparse_probing.probes.uncertainty.false_discoveries import benjamini_hochberg, family_q_values


def test_benjamini_hochberg_equals_scipy() -> None:
    p = np.random.default_rng(0).random(200) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p), atol=1e-12)
    with_gap = np.insert(p, 5, np.nan)
    np.testing.assert_allclose(np.delete(benjamini_hochberg(with_gap), 5), benjamini_hochberg(p))
    assert np.isnan(benjamini_hochberg(with_gap)[5])


def test_family_q_values_are_benjamini_hochberg_on_the_best_neurons() -> None:
    rng = np.random.default_rng(0)
    families = [rng.random(30) ** 2 for _ in range(12)]
    q = family_q_values(families)
    best = benjamini_hochberg([family.min() for family in families])
    np.testing.assert_allclose([one.min() for one in q], best)
    for family, one in zip(families, q, strict=True):
        assert (one >= family - 1e-15).all()
        assert (np.diff(one[np.argsort(family)]) >= -1e-12).all()
