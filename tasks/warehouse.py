"""Tasks that load, check and publish results. One process at a time writes the working database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from sparse_probing.errors import CheckFailure, DamageError
from sparse_probing.settings import load_settings
from sparse_probing.store.locks import held
from tasks.locations import data_root
from tasks.logs import logged
from tasks.policies import POLICY
from tasks.progress import say_and_log, step

if TYPE_CHECKING:
    from sparse_probing.warehouse.checks import CheckResult
    from sparse_probing.warehouse.loading import LoadReport

Answer = TypeVar("Answer")


def _working() -> Path:
    return load_settings().working_path


def _alone(act: Callable[[], Answer]) -> Answer:
    """Do something with the working database while no other process does; where it is damaged, build it anew first."""
    from sparse_probing.warehouse import connection

    working = _working()
    with held(working.with_name(f"{working.name}.lock"), what="the results database", say=say_and_log):
        connection.wait_until_free(working, say=say_and_log)
        try:
            return act()
        except DamageError as damage:
            if damage.path != str(working):
                raise
            _rebuild(damage)
            return act()


def _rebuild(damage: DamageError) -> None:
    """A new working database: of what was published, what fragments say, and what checks find where none was recorded."""
    from sparse_probing.warehouse import working

    moved = working.move_aside(_working())
    say_and_log(f"Warning: {damage.message} It was moved to {moved}, and is built anew.")
    _load()
    _check([])


def _check(run_ids: list[str]) -> list[CheckResult]:
    """Check runs, and those of which nothing is recorded, as after a database was built anew; results of the runs alone."""
    from sparse_probing.warehouse import checks

    wanted = [*run_ids, *checks.unchecked_runs(_working())]
    return [result for result in checks.run_checks(_working(), wanted, data_root()) if result.run_id in run_ids]


def _load() -> LoadReport:
    from sparse_probing.runs.comparing import intervals
    from sparse_probing.warehouse import comparing, loading

    report = loading.load_results(_working(), data_root(), snapshot=load_settings().snapshot_path)
    comparing.compare(_working(), intervals)
    if report.rebuilt_from is not None:
        say_and_log(
            f"Warning: the results database was of another version or damaged. It was moved to {report.rebuilt_from}, "
            "and built anew."
        )
    for run_id, error in report.left_out.items():
        say_and_log(f"Warning: run {run_id} was not loaded, and is as it was published: {error}")
    return report


@task(name="load-results", **POLICY)
def load_results(run_ids: list[str]) -> int:
    """Merge every finished run into the working database; returns how many fragments were new.

    Raises
    ------
    ArtifactError
        If one of these runs cannot be loaded.
    """
    with step("Load results"), logged("Results loaded", runs=len(run_ids)) as numbers:
        report = _alone(_load)
        numbers |= {"new_fragments": report.n_fragments, "rows": sum(report.n_rows.values())}
    for run_id in run_ids:
        if run_id in report.left_out:
            raise report.left_out[run_id]
    return report.n_fragments


@task(name="check-results", **POLICY)
def check_results(run_ids: list[str]) -> list[str]:
    """Run every check over the runs and record the outcomes; returns one line per failed check of severity error."""
    from sparse_probing.warehouse import checks

    with step("Check results"), logged("Results checked", runs=len(run_ids)) as numbers:
        results = _alone(lambda: _check(run_ids))
        failed = [result for result in results if not result.passed]
        numbers |= {"checks": len(results), "failed": len(failed), "errors": len(checks.failed_errors(results))}
    create_table_artifact(
        key="validation-checks",
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
    return [f"{r.check_name}: {r.n_violations} violation(s), first: {r.detail}" for r in checks.failed_errors(results)]


@task(name="publish-snapshot", **POLICY)
def publish_snapshot() -> str:
    """Replace the published database; returns its path."""
    snapshot = load_settings().snapshot_path
    with step("Publish"), logged("Published", database=snapshot) as numbers:
        _alone(lambda: _publish(snapshot))
        numbers["bytes"] = snapshot.stat().st_size
    return str(snapshot)


def _publish(snapshot: Path) -> None:
    from sparse_probing.warehouse import loading

    removed = loading.publish(_working(), snapshot)
    if removed is not None:
        say_and_log(
            f"Warning: someone wrote to {snapshot}; what they wrote is gone, with the log {removed.name} that they left. "
            "Open it read-only; keep tables of your own in another file and attach this one."
        )


@task(name="write-report", **POLICY)
def write_report(run_ids: list[str], study: str) -> str:
    """Write the HTML report and leave the rankings as artifacts; returns the report's path."""
    from sparse_probing.reports import html, tables
    from sparse_probing.warehouse import connect, reads

    settings = load_settings()
    with step("Write report"), logged("Report written") as numbers:
        path = html.write_report(settings.snapshot_path, settings.reports_dir / "index.html")
        numbers |= {"report": path, "bytes": path.stat().st_size}
    with connect(settings.snapshot_path) as connection:
        best = reads.best_neurons(connection, run_ids)
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
    create_table_artifact(key="best-neurons", table=rows, description=f"Best neuron per feature, study {study}")
    lines = [
        f"# Study {study}",
        "",
        f"{len(rows)} features probed.",
        "",
        "| feature | neuron | direction | test MCC, 95 % interval |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row.feature} | layer {row.layer}, neuron {row.neuron} | {tables.direction_word(row.direction)} "
        f"| {tables.interval(row.test_mcc, row.test_mcc_low, row.test_mcc_high)} |"
        for row in best
    ]
    create_markdown_artifact(key="study-summary", markdown="\n".join(lines), description="Rankings and where they lie")
    return str(path)


@task(name="raise-failed-checks", **POLICY)
def raise_failed_checks(failed: list[str]) -> None:
    """Raise `CheckFailure` if there is anything to raise it for; all is published by now."""
    if failed:
        raise CheckFailure.of_results(failed)


def check_again(run_ids: list[str]) -> None:
    """Run the checks of published runs once more and publish their outcomes; outside of any flow."""

    def act() -> None:
        _load()
        _check(run_ids)
        _publish(load_settings().snapshot_path)

    _alone(act)


def publish_again() -> None:
    """Load what is new and publish, outside of any flow; a database that turns out to be damaged is built anew."""
    snapshot = load_settings().snapshot_path

    def act() -> None:
        _load()
        _check([])
        _publish(snapshot)

    if snapshot.is_file() or _working().is_file():
        _alone(act)


def forget_and_publish(run_ids: list[str]) -> None:
    """Take runs out of the database, whose fragments go next, and publish; outside of any flow."""
    from sparse_probing.warehouse import loading

    def act() -> None:
        loading.forget_runs(_working(), run_ids)
        _publish(load_settings().snapshot_path)

    _alone(act)
