"""Flow: load the results, check them, publish a snapshot and the report; fail last, when all can be seen."""

from __future__ import annotations

from prefect import flow

from flows.starting import Profile, plan_of, run_name, started
from sparse_probing.config import StudySpec
from tasks.warehouse import check_results, load_results, publish_snapshot, raise_failed_checks, write_report


@flow(name="publish", flow_run_name=lambda: run_name("publish"), persist_result=False)
def publish(profile: Profile = "demo", spec: StudySpec | None = None) -> list[str]:
    """Publish what is finished of a study, and every other finished run of the data folder; returns the study's runs.

    Parameters
    ----------
    profile, spec:
        As those of `study`.

    Raises
    ------
    CheckFailure
        After publishing, if a check of severity error failed.
    """
    with started(profile, spec) as study:
        run_ids = plan_of(study).finished_run_ids
        load_results(run_ids)
        failed = check_results(run_ids, study.name)
        publish_snapshot(run_ids, study.name)
        write_report(run_ids, study.name)
        raise_failed_checks(failed)
        return run_ids
