"""Flow: load the results, check them, publish a snapshot and the report; fail last, when all can be seen."""

from __future__ import annotations

from prefect import flow

from tasks.warehouse import check_results, load_results, publish_snapshot, raise_failed_checks, write_report


@flow(name="publishing", flow_run_name="publishing of {study}", persist_result=False)
def publish_results(run_ids: list[str], study: str) -> str:
    """Publish the runs; returns the snapshot's path.

    Raises
    ------
    CheckFailure
        After publishing, if a check of severity error failed.
    """
    load_results(run_ids)
    failed = check_results(run_ids)
    snapshot = publish_snapshot()
    write_report(run_ids, study)
    raise_failed_checks(failed)
    return snapshot
