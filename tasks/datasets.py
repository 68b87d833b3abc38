"""Tasks that build feature datasets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import task

from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec
from sparse_probing.datasets.doubts import doubts
from sparse_probing.errors import CheckFailure
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import find_manifest, read_manifest
from tasks.assets import tell_made
from tasks.locations import data_root, folder_collection, located, relative
from tasks.logs import facts_of, logged, stored_bytes
from tasks.models import resolved_model
from tasks.policies import POLICY
from tasks.progress import reporter, say_and_log, step, step_of
from tasks.repair import making


@task(name="resolve-model", task_run_name="resolve {model.id}", **POLICY)
def resolve_model(
    model: ModelSpec, collections: tuple[CollectionSpec, ...] = (), extractions: tuple[ExtractionSpec, ...] = ()
) -> str:
    """Fetch or convert a model so that later tasks find it, and see that it fits; returns its weights digest.

    Raises
    ------
    InputError
        If the model cannot take sequences of these collections, or lacks a hook or layer that is asked for.
    """
    from sparse_probing.models import fits, loading

    with step(f"Find {model.short_name}"), logged("Model found", model=model.short_name) as numbers:
        resolved = resolved_model(model)
        lines = fits.check_fits(resolved, loading.load_tokenizer(resolved), collections, extractions)
        numbers |= {"revision": resolved.revision, "architecture": resolved.architecture, "dtype": resolved.dtype}
        numbers |= {"layers": resolved.n_layers, "neurons_a_layer": resolved.n_neurons}
    for line in lines:
        say_and_log(line)
    return resolved.weights_digest


@task(name="build-dataset", task_run_name="build {collection.collection}", **POLICY)
def build_dataset(model: ModelSpec, collection: CollectionSpec) -> str:
    """Text to tokens and labels, with the model's tokenizer; returns the dataset's reference."""
    from sparse_probing.datasets import build
    from sparse_probing.models import loading

    with logged("Dataset", model=model.short_name, collection=collection.collection) as numbers:
        resolved = resolved_model(model)
        was_there = False

        @contextmanager
        def looked_for(folder: Location) -> Iterator[None]:
            nonlocal was_there
            with making(folder):
                was_there = find_manifest(folder) is not None
                yield

        folder = build.build_dataset(
            collection,
            root=data_root(),
            tokenizer=loading.load_tokenizer(resolved),
            tokenizer_digest=resolved.tokenizer_digest,
            progress=reporter(
                f"Build {collection.collection}", "documents", of=step_of(model.short_name, model.revision)
            ),
            making=looked_for,
        )
        manifest = read_manifest(folder)
        numbers |= {"features": len(manifest.facts.get("features", ()))}
        numbers |= facts_of(manifest, "n_sequences", "n_tokens", "n_rows", "n_labels")
        numbers |= {"bytes": stored_bytes(manifest)}
    if not was_there:
        title = f"Dataset {collection.collection}, tokens of {model.short_name}"
        tell_made(relative(folder), title, facts={"bytes": stored_bytes(manifest)})
    say_doubts(model.short_name, collection.collection, folder)
    return relative(folder)


def say_doubts(model: str, collection: str, folder: Location) -> None:
    """Tell what of the user's text a dataset lacks or a tokenizer does not know, whether it was built now or before."""
    for line in doubts(model, collection, read_manifest(folder).facts):
        say_and_log(line)


@task(name="check-dataset", task_run_name="check {dataset}", **POLICY)
def check_dataset(dataset: str) -> str:
    """Great Expectations over the dataset's frames, before anything expensive is done with it.

    Raises
    ------
    CheckFailure
        If an expectation of severity error fails.
    """
    from sparse_probing.warehouse import checks

    collection = folder_collection(dataset)
    with step(f"Check {collection}"), logged("Dataset checked", collection=collection) as numbers:
        results = checks.check_stored_dataset(located(dataset))
        failed = checks.failed_errors(results)
        numbers |= {"checks": len(results), "failed": len(failed)}
    if failed:
        raise CheckFailure.of_dataset(dataset, [one.line for one in failed])
    return dataset
