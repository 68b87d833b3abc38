"""Planted data for the probes' tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from sparse_probing.probes.splits import group_split


@dataclass(frozen=True)
class Planted:
    """Levels with planted neurons 3, 11 and 20 (falling strength, 11 with the other sign) and a constant neuron 7."""

    X: np.ndarray
    y: np.ndarray
    groups: np.ndarray
    split: np.ndarray
    offset: np.ndarray
    scale: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return self.offset.astype(float) + self.scale.astype(float) * self.X

    @property
    def keywords(self) -> dict[str, np.ndarray]:
        return {"split": self.split, "offset": self.offset, "scale": self.scale}


def plant(n_samples: int = 480, n_neurons: int = 40, seed: int = 0) -> Planted:
    """Document-level labels: three rows a group."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n_samples) // 3
    y = np.where(rng.random(groups.max() + 1) < 0.35, 1, -1).astype(np.int8)[groups]
    latent = rng.normal(size=(n_samples, n_neurons))
    for neuron, strength in ((3, 2.5), (11, -1.5), (20, 0.8)):
        latent[:, neuron] += strength * y
    spread, centre = rng.uniform(4, 25, n_neurons), rng.uniform(60, 190, n_neurons)
    X = np.clip(np.rint(latent * spread + centre), 0, 255).astype(np.uint8)
    X[:, 7] = 42
    return Planted(
        X=X,
        y=y,
        groups=groups,
        split=group_split(groups, y, rng=seed),
        offset=rng.normal(size=n_neurons).astype(np.float32),
        scale=rng.uniform(0.01, 0.1, n_neurons).astype(np.float32),
    )


@pytest.fixture(scope="session")
def planted() -> Planted:
    return plant()
