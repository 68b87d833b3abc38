"""Tasks that build feature datasets."""

from __future__ import annotations

from prefect import task
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from sparse_probing.config import CollectionSpec, ModelSpec
from sparse_probing.datasets.sources import NO_LABEL, NO_TEXT, Skipped
from sparse_probing.errors import CheckFailure
from sparse_probing.store.datasets import dataset_frames
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from tasks.models import resolved_model
from tasks.policies import POLICY
from tasks.progress import reporter, say, step
from tasks.references import data_root, located, relative


@task(name="resolve-model", task_run_name="resolve {model.id}", **POLICY)
def resolve_model(model: ModelSpec) -> str:
    """Fetch or convert a model so that later tasks find it; returns its weights digest."""
    with step(f"Find {model.short_name}"):
        return resolved_model(model).weights_digest


@task(name="build-dataset", task_run_name="build {collection.collection}", **POLICY)
def build_dataset(model: ModelSpec, collection: CollectionSpec) -> str:
    """Text to tokens and labels, with the model's tokenizer; returns the dataset's reference."""
    from sparse_probing.datasets import build
    from sparse_probing.models import loading

    resolved = resolved_model(model)
    folder = build.build_dataset(
        collection,
        root=data_root(),
        tokenizer=loading.load_tokenizer(resolved),
        tokenizer_digest=resolved.tokenizer_digest,
        progress=reporter(f"Build {collection.collection}", "documents"),
    )
    say_skipped(collection.collection, folder)
    return relative(folder)


def say_skipped(collection: str, folder: Location) -> None:
    """Tell which of the user's rows and files a dataset lacks, whether it was built now or before."""
    for entry in read_manifest(folder).facts.get("skipped", ()):
        total = Skipped(**entry)
        warning = "warning: " if total.reason in (NO_TEXT, NO_LABEL) else ""
        text = f"Build {collection}: {warning}skipped {total}"
        say(text)
        if TaskRunContext.get() is not None:
            get_run_logger().warning(text)


@task(name="check-dataset", task_run_name="check {dataset}", **POLICY)
def check_dataset(dataset: str) -> str:
    """Great Expectations over the dataset's frames, before anything expensive is done with it.

    Raises
    ------
    CheckFailure
        If an expectation of severity error fails.
    """
    from sparse_probing.warehouse import checks

    with step(f"Check {dataset.rsplit('/', 1)[-1].rsplit('-', 1)[0]}"):
        failed = checks.failed_errors(checks.check_dataset(*dataset_frames(located(dataset))))
    if failed:
        raise CheckFailure(
            f"Dataset {dataset}: {failed[0].check_name}: {failed[0].detail} ({len(failed)} checks failed).",
            remedy="Mend the text source, or delete the dataset's folder if it was changed by hand.",
        )
    return dataset
