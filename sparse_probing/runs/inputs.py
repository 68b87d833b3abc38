"""Inputs shared by all layers of a run: labels with the requested split, permutations, random bases, the choice of audits.

No activations are read here, and nothing is fitted.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparse_probing.config import ProbingSpec, canonical_json
from sparse_probing.errors import DataError
from sparse_probing.probes import METHODS
from sparse_probing.probes.experiments import baselines
from sparse_probing.probes.labelling import SignedLabels
from sparse_probing.probes.splits import reference_split
from sparse_probing.probes.uncertainty import permutations
from sparse_probing.probes.uncertainty.permutations import LabelPermutations
from sparse_probing.runs.finishing import LayerSummary, read_summary
from sparse_probing.runs.planned import PlannedRun
from sparse_probing.store.filesystem import Location
from sparse_probing.store.labels import LabelMatrix, read_labels
from sparse_probing.store.manifests import read_manifest

# Feature, layer (None: the best, whichever it is), method and k.
Certificate = tuple[str, int | None, str, int]


@dataclass(frozen=True)
class ProbingInputs:
    """Inputs shared by all layers of a run."""

    run_id: str
    probing: ProbingSpec
    labels: LabelMatrix
    permutations: LabelPermutations
    # By number of stored neurons, which layers may differ in.
    rotations: Mapping[int, NDArray[np.float32]]
    # Certificates that are audited.
    audited: frozenset[Certificate] = frozenset()

    def audited_sizes(self, feature: str, layer: int | None, method: str) -> frozenset[int]:
        """The k at which a method's certificates are audited; `layer` is None for methods of the best layer."""
        return frozenset(k for *fit, k in self.audited if fit == [feature, layer, method])


def shared_inputs(
    run_id: str,
    probing: ProbingSpec,
    labels: LabelMatrix,
    n_neurons_by_layer: Sequence[int],
    layers: Sequence[int] = (),
) -> ProbingInputs:
    """Make the permutations, the random bases and the choice of audits once for all layers of a run."""
    generator = np.random.default_rng(probing.seed)
    return ProbingInputs(
        run_id=run_id,
        probing=probing,
        labels=labels,
        permutations=permutations.permute_labels(
            SignedLabels(labels.labels),
            labels.groups,
            split=labels.split,
            n_permutations=probing.n_permutations,
            rng=generator,
        ),
        rotations={n: baselines.random_rotation(n, generator) for n in sorted(set(n_neurons_by_layer))},
        audited=audited_certificates(probing, labels.features, layers),
    )


def audited_certificates(
    probing: ProbingSpec, features: Sequence[str], layers: Sequence[int]
) -> frozenset[Certificate]:
    """The sample of a run's certificates that is audited: as many as the spec says, in an order that its seed decides."""
    placed: list[tuple[int | None, str]] = [(None, method) for method in probing.best_layer_methods]
    placed += [(layer, method) for layer in layers for method in probing.methods]
    planned: list[Certificate] = [
        (feature, layer, method, k)
        for feature in features
        for layer, method in placed
        if METHODS[method].is_optimal
        for k in probing.sizes(method)
    ]
    if probing.audited_certificates == "all":
        return frozenset(planned)

    def order(certificate: Certificate) -> str:
        return hashlib.sha256(canonical_json([probing.seed, *certificate]).encode()).hexdigest()

    return frozenset(sorted(planned, key=order)[: probing.audited_certificates])


# Of the reference split's training rows: it has no validation part of its own, and layers are compared on one.
REFERENCE_VALIDATION = 0.2
# Of the runs that are probed at present. A run's are kept until it is finished: its layers come one by one, beside those of
# other runs.
_inputs: dict[tuple[str, str], ProbingInputs] = {}
_labels: dict[tuple[str, str], LabelMatrix] = {}
_summaries: dict[tuple[str, str], dict[int, LayerSummary]] = {}
_sharing = threading.RLock()


def run_labels(root: Location, run: PlannedRun) -> LabelMatrix:
    """The run's labels, on the split that its probing asks for; read once while the run is probed."""
    key = (root.path, run.run_id)
    with _sharing:
        if key not in _labels:
            labels = read_labels(root / run.dataset, root / run.activations)
            if run.probing.split == "reference":
                codes = reference_split(
                    len(labels.split), validation_fraction=REFERENCE_VALIDATION, seed=run.probing.seed
                )
                labels = replace(labels, split=codes)
            if run.probing.features is not None:
                labels = labels.only(run.probing.features)
                if not (labels.features or labels.regression_features):
                    raise DataError(
                        f"{run.dataset} has none of the features {', '.join(run.probing.features)}.",
                        remedy="Edit probing.features, or leave the collection out.",
                    )
            _labels[key] = labels
        return _labels[key]


def run_inputs(root: Location, run: PlannedRun) -> ProbingInputs:
    """The run's inputs, made once while it is probed."""
    key = (root.path, run.run_id)
    with _sharing:
        if key not in _inputs:
            counts = read_manifest(root / run.activations).facts["n_neurons_by_layer"]
            _inputs[key] = shared_inputs(run.run_id, run.probing, run_labels(root, run), counts, run.layers)
        return _inputs[key]


def keep_summary(root: Location, run: PlannedRun, layer: int, summary: LayerSummary) -> None:
    """Keep a layer's summary while its run is probed."""
    with _sharing:
        _summaries.setdefault((root.path, run.run_id), {})[layer] = summary


def layer_summaries(root: Location, run: PlannedRun) -> list[LayerSummary]:
    """Summaries of all layers, in their order; those of layers that another process probed are read, once."""
    with _sharing:
        kept = _summaries.setdefault((root.path, run.run_id), {})
        for layer in run.layers:
            if layer not in kept:
                kept[layer] = read_summary(root, run.run_id, layer)
        return [kept[layer] for layer in run.layers]


def forget_inputs(root: Location, run: PlannedRun) -> None:
    """Free what was kept of a run."""
    key = (root.path, run.run_id)
    with _sharing:
        _inputs.pop(key, None)
        _labels.pop(key, None)
        _summaries.pop(key, None)
