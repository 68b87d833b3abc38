"""Flow: build and check every dataset that a study needs."""

from __future__ import annotations

from prefect import flow

from flows.futures import results_of, threads
from flows.starting import Profile, is_nested, run_name, started
from sparse_probing.config import StudySpec
from tasks.datasets import build_dataset, check_dataset, resolve_model
from tasks.imports import import_for_datasets


@flow(
    name="datasets",
    flow_run_name=lambda: run_name("datasets"),
    task_runner=threads(4),
    persist_result=False,
)
def datasets(profile: Profile = "demo", spec: StudySpec | None = None) -> list[list[str]]:
    """Build and check the datasets of a study; what is there already is only checked.

    Parameters
    ----------
    profile:
        Name of a profile that comes with the package, or path of a TOML file. Ignored when `spec` is given.
    spec:
        The study itself.

    Returns
    -------
    list of list of str
        For each model, the reference of each collection's dataset.
    """
    with started(profile, spec) as study:
        import_for_datasets()
        references = []
        for model in study.models:
            if not is_nested():
                resolve_model(model, study.collections, study.extractions)
            built = results_of([build_dataset.submit(model, collection) for collection in study.collections])
            references.append([check_dataset(dataset) for dataset in built])
        return references
