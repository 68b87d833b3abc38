"""Tasks that extract activations: the one step that needs the device."""

from __future__ import annotations

from contextlib import nullcontext

from prefect import task

from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.settings import load_settings
from sparse_probing.store.manifests import find_manifest, read_manifest
from tasks.policies import POLICY, one_at_a_time
from tasks.progress import reporter
from tasks.references import data_root, located, relative


@task(name="extract-activations", task_run_name="extract {dataset}", **POLICY)
def extract_activations(
    model: ModelSpec, dataset: str, extraction: ExtractionSpec, shard: tuple[int, int] | None = None
) -> str:
    """Every wanted layer of every labelled row, in one pass; returns the activations' reference.

    With `shard` (i, n) only part i of n; the artifact is finished when the last part is.
    """
    from sparse_probing.activations import estimate
    from sparse_probing.activations import extraction as engine
    from sparse_probing.models import loading

    settings = load_settings()
    resolved = loading.resolve_model(model, models_dir=settings.models_dir)
    source = located(dataset)
    dataset_digest = read_manifest(source).digest
    digest = engine.activations_digest(extraction, resolved, dataset_digest)
    folder = engine.activations_folder(data_root(), resolved, dataset_digest, digest)
    if find_manifest(folder, digest=digest) is not None:
        return relative(folder)
    # Refused before the first forward pass, with what would make it fit.
    estimate.check_space(
        estimate.estimate(source, resolved, extraction, device=settings.device, trial_tokens=0), data_root(), extraction
    )
    collection = folder_collection(dataset)
    # Parts have a device each, and wait for each other: one at a time they would wait for ever.
    with one_at_a_time() if shard is None else nullcontext():
        engine.extract_dataset(
            source,
            resolved,
            extraction,
            root=data_root(),
            device=settings.device,
            progress=reporter(f"Extract {collection}"),
            shard=shard,
        )
    return relative(folder)


def is_extracted(reference: str) -> bool:
    """Whether an activations artifact is finished."""
    return find_manifest(located(reference)) is not None


def folder_collection(dataset: str) -> str:
    """Name of the collection in a dataset's reference ``datasets/<collection>-<digest>``."""
    return dataset.rsplit("/", 1)[-1].rsplit("-", 1)[0]
