"""A run before it is computed: its id, the paths of its inputs, and its row of provenance.

No arrays are read here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from sparse_probing import config, schemas
from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec, ProbingSpec
from sparse_probing.errors import InputError
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.store.locks import Say
from sparse_probing.store.making import mend
from sparse_probing.store.manifests import Manifest, package_versions, read_manifest

USUAL_HOOK = ExtractionSpec().hook


@dataclass(frozen=True)
class PlannedRun:
    """One run: a model's activations at one hook on one collection, probed in one way.

    Attributes
    ----------
    run_id:
        The first characters of `run_digest`.
    study:
        Name of the study that asked for it first.
    dataset, activations:
        Paths of its inputs, relative to the data root.
    hook, revision, layers:
        Of its activations.
    finished:
        Whether its result tables were there when it was planned.
    """

    run_id: str
    study: str
    model: ModelSpec
    collection: CollectionSpec
    probing: ProbingSpec
    dataset: str
    activations: str
    hook: str
    revision: str
    layers: tuple[int, ...]
    finished: bool

    @property
    def title(self) -> str:
        """For logs."""
        return f"{self.model.short_name} · {self.text}"

    @property
    def text(self) -> str:
        """For progress bars: the collection, and the hook where it is not the usual one."""
        name = self.collection.collection
        return name if self.hook == USUAL_HOOK else f"{name} · {self.hook}"


def run_digest(probing: ProbingSpec, *, dataset_digest: str, activations_digest: str) -> str:
    """Digest of everything that a run's results depend on."""
    inputs = {"dataset": dataset_digest, "activations": activations_digest}
    return config.digest(probing, inputs=inputs, version=config.PROBING_VERSION)


def plan_run(
    root: Location,
    *,
    study: str,
    model: ModelSpec,
    collection: CollectionSpec,
    probing: ProbingSpec,
    dataset: str,
    activations: str,
    say: Say,
) -> PlannedRun:
    """Name a run after its inputs and its probing, and say which layers it has. What of it is damaged is set aside first.

    Parameters
    ----------
    dataset, activations:
        Paths of finished artifacts, relative to `root`.
    say:
        Told what was set aside, and which process is waited for.

    Raises
    ------
    ArtifactError
        If the dataset or the activations are not finished.
    InputError
        If a layer is asked for that was not extracted.
    """
    made = read_manifest(root / activations)
    digest = run_digest(probing, dataset_digest=read_manifest(root / dataset).digest, activations_digest=made.digest)
    run_id = digest[: results.RUN_ID_LENGTH]
    parts = results.running_folder(root, run_id).children()
    mend(root, [*(results.run_folder(root, kind, run_id) for kind in schemas.RESULT_KINDS), *parts], say=say)
    return PlannedRun(
        run_id=run_id,
        study=study,
        model=model,
        collection=collection,
        probing=probing,
        dataset=dataset,
        activations=activations,
        hook=made.facts["hook"],
        revision=made.facts["revision"],
        layers=_layers(probing, made, activations),
        finished=results.is_finished(root, run_id),
    )


def _layers(probing: ProbingSpec, made: Manifest, activations: str) -> tuple[int, ...]:
    stored = tuple(made.facts["layers"])
    missing = sorted(set(probing.layers or ()) - set(stored))
    if missing:
        raise InputError(
            f"Layer {missing[0]} is to be probed; {activations} has {', '.join(map(str, stored))}.",
            remedy="Edit probing.layers, or extract it.",
        )
    return stored if probing.layers is None else probing.layers


def runs_table(run: PlannedRun, dataset: Manifest, activations: Manifest) -> pa.Table:
    """The run's one row of provenance."""
    facts = activations.facts
    row = {
        "run_id": run.run_id,
        "study": run.study,
        "model": run.model.short_name,
        "revision": facts["revision"],
        "weights_digest": facts["weights_digest"],
        "tokenizer_digest": facts["tokenizer_digest"],
        "collection": run.collection.collection,
        "dataset_digest": dataset.digest,
        "activations_digest": activations.digest,
        "probing_digest": config.digest(run.probing, version=config.PROBING_VERSION),
        "hook": facts["hook"],
        "pooling": facts["pooling"],
        "layers": list(run.layers),
        "n_neurons": max(facts["n_neurons_by_layer"]),
        "n_rows": facts["n_rows"],
        "n_sequences": facts["n_sequences"],
        "n_tokens": facts["n_tokens"],
        "storage_dtype": facts["storage_dtype"],
        "model_dtype": facts["model_dtype"],
        "attention": facts["attention"],
        "split_mode": run.probing.split,
        "seed": run.probing.seed,
        "max_clipped_fraction": facts["max_clipped_fraction"],
        "max_quantisation_error": facts["max_quantisation_error"],
        "quantisation_error_bound": facts["quantisation_error_bound"],
        "spec": json.dumps(
            {
                "model": run.model.model_dump(mode="json"),
                "collection": run.collection.model_dump(mode="json"),
                "probing": run.probing.model_dump(mode="json"),
                "extraction": dict(activations.spec),
            },
            sort_keys=True,
        ),
        "package_versions": json.dumps(package_versions(), sort_keys=True),
    }
    return pa.Table.from_pylist([row], schema=schemas.fragment("runs"))
