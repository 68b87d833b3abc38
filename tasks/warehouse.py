"""Tasks that load, check and publish results. One process at a time writes the working database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from sparse_probing.errors import CheckFailure
from sparse_probing.settings import load_settings
from tasks.events import tell
from tasks.locations import data_root
from tasks.logs import logged
from tasks.policies import POLICY
from tasks.progress import artifact_key, say_and_log, step
from tasks.summaries import Summary, markdown

if TYPE_CHECKING:
    from sparse_probing.warehouse.publishing import Publisher


def _publisher() -> Publisher:
    """The databases of this process's data folder."""
    from sparse_probing.runs.comparing import intervals
    from sparse_probing.warehouse.publishing import Publisher

    settings = load_settings()
    return Publisher(
        data_root(), settings.working_path, settings.snapshot_path, intervals, say_and_log, settings.most_scores
    )


@task(name="load-results", **POLICY)
def load_results(run_ids: list[str]) -> int:
    """Merge every finished run into the working database; returns how many fragments were new.

    Raises
    ------
    ArtifactError
        If one of these runs cannot be loaded.
    """
    with step("Load results"), logged("Results loaded", runs=len(run_ids)) as numbers:
        report = _publisher().load(run_ids)
        numbers |= {"new_fragments": report.n_fragments, "rows": sum(report.n_rows.values())}
    return report.n_fragments


@task(name="check-results", **POLICY)
def check_results(run_ids: list[str], study: str) -> list[str]:
    """Run every check over the runs and record the outcomes; returns one line per failed check of severity error."""
    from sparse_probing.warehouse import checks

    with step("Check results"), logged("Results checked", runs=len(run_ids)) as numbers:
        results = _publisher().check(run_ids)
        failed = [result for result in results if not result.passed]
        numbers |= {"checks": len(results), "failed": len(failed), "errors": len(checks.failed_errors(results))}
    create_table_artifact(
        key=artifact_key("validation-checks", study),
        table=[
            {
                "check": r.check_name,
                "run": r.run_id,
                "severity": r.severity,
                "violations": r.n_violations,
                "passed": r.passed,
            }
            for r in results
        ],
        description="Every check on the runs of this study",
    )
    for one in failed:
        facts: dict[str, object] = {
            "study": study,
            "run": one.run_id,
            "check": one.check_name,
            "severity": one.severity,
            "found": one.line,
        }
        tell("check.failed", f"check.{one.check_name}", facts)
    return [one.line for one in checks.failed_errors(results)]


@task(name="publish-snapshot", **POLICY)
def publish_snapshot(run_ids: list[str], study: str) -> str:
    """Replace the published database; returns its path."""
    snapshot = load_settings().snapshot_path
    with step("Publish"), logged("Published", database=snapshot) as numbers:
        _publisher().publish()
        numbers["bytes"] = snapshot.stat().st_size
    tell("study.published", f"study.{study}", {"study": study, "runs": run_ids})
    return str(snapshot)


@task(name="write-report", **POLICY)
def write_report(run_ids: list[str], study: str) -> str:
    """Write the HTML report and leave rankings and a summary as artifacts; returns the report's path."""
    from sparse_probing.reports import html
    from sparse_probing.warehouse import connect, reads

    settings = load_settings()
    with step("Write report"), logged("Report written") as numbers:
        path = html.write_report(settings.snapshot_path, settings.reports_dir / "index.html")
        numbers |= {"report": path, "bytes": path.stat().st_size}
    with connect(settings.snapshot_path) as connection:
        best = reads.best_neurons(connection, run_ids)
        summary = Summary(
            study=study,
            neurons=best,
            targets=reads.best_target_probes(connection, run_ids),
            failed=[one for one in reads.checks(connection, run_ids) if not one.passed],
            costs=reads.artifact_costs(connection, run_ids),
            places={
                "report": str(path),
                "database": str(settings.snapshot_path),
                "data": settings.shown_data,
            },
        )
    columns = (
        "model",
        "collection",
        "feature",
        "layer",
        "neuron",
        "direction",
        "validation_mcc",
        "test_mcc",
        "test_mcc_low",
        "test_mcc_high",
        "q_value",
    )
    rows = [{name: getattr(row, name) for name in columns} for row in best]
    create_table_artifact(
        key=artifact_key("best-neurons", study), table=rows, description=f"Best neuron per feature, study {study}"
    )
    create_markdown_artifact(
        key=artifact_key("study-summary", study),
        markdown=markdown(summary),
        description=f"Study {study}: best neurons, failed checks, time and bytes, and where everything lies",
    )
    return str(path)


@task(name="raise-failed-checks", **POLICY)
def raise_failed_checks(failed: list[str]) -> None:
    """Raise `CheckFailure` if there is anything to raise it for; all is published by now."""
    if failed:
        raise CheckFailure.of_results(failed)


def check_again(run_ids: list[str]) -> None:
    """Run the checks of published runs once more and publish their outcomes; outside of any flow."""
    publisher = _publisher()
    publisher.load()
    publisher.check(run_ids)
    publisher.publish()


def publish_again() -> None:
    """Load what is new and publish, outside of any flow; a database that turns out to be damaged is built anew."""
    settings = load_settings()
    if settings.snapshot_path.is_file() or settings.working_path.is_file():
        check_again([])


def forget_and_publish(run_ids: list[str]) -> None:
    """Take runs out of the database, whose fragments go next, and publish; outside of any flow."""
    publisher = _publisher()
    publisher.forget(run_ids)
    publisher.publish()


def publish_what_is_there() -> None:
    """Look anew which artifacts of the published runs are there, and publish; outside of any flow."""
    publisher = _publisher()
    publisher.load()
    publisher.look_again()
    publisher.publish()
