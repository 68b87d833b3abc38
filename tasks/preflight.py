"""The task that refuses a study before any expensive work."""

from __future__ import annotations

from prefect import task

from sparse_probing.config import StudySpec
from sparse_probing.preflight import check_names, preflight
from sparse_probing.settings import load_settings
from tasks.policies import POLICY
from tasks.progress import prefect_started


@task(name="preflight", **POLICY)
def refuse_the_impossible(study: StudySpec) -> None:
    """Raise `InputError` if the study cannot run as written."""
    prefect_started()
    preflight(study, load_settings())


def refuse_wrong_names(study: StudySpec) -> None:
    """Raise `InputError` if what the words of the study tell cannot work; its models may not be there yet."""
    check_names(study)
