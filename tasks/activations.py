"""Tasks that extract activations: the one step that needs the device."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping
from contextlib import ExitStack

from prefect import task

from sparse_probing.config import ExtractionSpec, ModelSpec, StudySpec
from sparse_probing.settings import load_settings
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import find_manifest, read_manifest
from tasks.assets import tell_made
from tasks.datasets import build_dataset, check_dataset, resolve_model
from tasks.locations import data_root, folder_collection, located, relative
from tasks.logs import as_ranges, facts_of, log, stored_bytes
from tasks.models import resolved_model
from tasks.policies import POLICY, one_at_a_time
from tasks.progress import reporter, step_of
from tasks.repair import making


@task(name="extract-activations", task_run_name="extract {dataset}", **POLICY)
def extract_activations(
    model: ModelSpec,
    dataset: str,
    extractions: tuple[ExtractionSpec, ...],
    shard: tuple[int, int] | None = None,
    only_ranges: bool = False,
) -> list[str]:
    """Every wanted hook and layer of every labelled row, in one pass; returns a reference for each artifact.

    With `shard` (i, n) only part i of n; artifacts are finished when the last part is. With `only_ranges` no more than the
    quantisation ranges, which the parts need.
    """
    from sparse_probing.activations import extraction as engine
    from sparse_probing.activations import naming

    settings, began = load_settings(), time.monotonic()
    resolved = resolved_model(model)
    source = located(dataset)
    dataset_digest = read_manifest(source).digest
    # Two names of one hook have one artifact.
    wanted = {naming.activations_digest(spec, resolved, dataset_digest): spec for spec in extractions}
    folders = {digest: naming.activations_folder(data_root(), resolved, dataset_digest, digest) for digest in wanted}
    references = [relative(folder) for folder in folders.values()]
    with ExitStack() as owned:
        # Parts of one extraction work side by side in its folder.
        if shard is None:
            for digest, folder in sorted(folders.items()):
                owned.enter_context(making(folder, digest=digest))
        found = {digest for digest, folder in folders.items() if find_manifest(folder, digest=digest) is not None}
        missing = [wanted[digest] for digest in folders if digest not in found]
        if not missing:
            _log_extracted(model, dataset, folders, found, began)
            return references
        owned.enter_context(one_at_a_time())
        engine.extract_datasets(
            source,
            resolved,
            missing,
            root=data_root(),
            device=settings.device,
            progress=reporter(
                f"Extract {folder_collection(dataset)}", "tokens", of=step_of(model.short_name, model.revision, shard)
            ),
            shard=shard,
            only_ranges=only_ranges,
        )
    _log_extracted(model, dataset, folders, found, began)
    return references


def _log_extracted(
    model: ModelSpec, dataset: str, folders: Mapping[str, Location], found: Container[str], began: float
) -> None:
    """A line an artifact, and an asset if it was made now; of one that other parts still work at there is nothing to say."""
    seconds = round(time.monotonic() - began, 2)
    for digest, folder in folders.items():
        manifest = find_manifest(folder, digest=digest)
        if manifest is None:
            continue
        if digest not in found:
            title = f"Activations of {model.short_name} at {manifest.facts['hook']} on {folder_collection(dataset)}"
            tell_made(relative(folder), title, of=[dataset], facts={"bytes": stored_bytes(manifest)})
        log(
            "Activations" if digest not in found else "Activations were there",
            model=model.short_name,
            revision=manifest.facts["revision"],
            collection=folder_collection(dataset),
            hook=manifest.facts["hook"],
            layers=as_ranges(manifest.facts["layers"]),
            **facts_of(manifest, "n_neurons", "n_rows", "n_tokens"),
            bytes=stored_bytes(manifest),
            seconds=seconds,
        )


def extract_by_hand(study: StudySpec, shard: tuple[int, int] | None, *, only_ranges: bool = False) -> list[str]:
    """A study's datasets and activations, or part i of n of them, outside of any flow; returns the paths of the activations.

    Parts need nothing in common but the data folder.
    """
    paths: list[str] = []
    for model in study.models:
        resolve_model.fn(model, study.collections, study.extractions)
    for model in study.models:
        for collection in study.collections:
            dataset = check_dataset.fn(build_dataset.fn(model, collection))
            paths += extract_activations.fn(model, dataset, study.extractions, shard, only_ranges)
    return paths


def is_extracted(reference: str) -> bool:
    """Whether an activations artifact is finished."""
    return find_manifest(located(reference)) is not None
