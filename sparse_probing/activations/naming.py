"""What an activations artifact is called, and where it lies: known before anything is extracted, without torch."""

from __future__ import annotations

from sparse_probing import config
from sparse_probing.config import ExtractionSpec
from sparse_probing.models.hook_names import canonical_hook
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location


def activations_digest(spec: ExtractionSpec, resolved: ResolvedModel, dataset_digest: str) -> str:
    """SHA-256 of what decides the stored numbers: spec, dataset, weights, dtype and attention implementation."""
    inputs = {
        "dataset": dataset_digest,
        "weights": resolved.weights_digest,
        "dtype": resolved.dtype,
        "attention": resolved.attention,
    }
    named = spec.model_copy(update={"hook": canonical_hook(spec.hook)})
    return config.digest(named, inputs=inputs, version=config.EXTRACTION_VERSION)


def activations_folder(root: Location, resolved: ResolvedModel, dataset_digest: str, digest: str) -> Location:
    """Where an extraction's artifact lies (or will lie)."""
    model = config.model_name(resolved.short_name, resolved.revision)
    return root / "activations" / model / config.activations_name(dataset_digest, digest)
