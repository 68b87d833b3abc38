"""Tasks that load, check and publish results. One process at a time writes the working database."""

from __future__ import annotations

import threading
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from sparse_probing.errors import CheckFailure
from sparse_probing.settings import load_settings
from sparse_probing.store.datasets import dataset_frames
from tasks.policies import POLICY
from tasks.progress import say_and_log, step
from tasks.references import data_root, located

WORKING_NAME = "working.duckdb"
_one_writer = threading.Lock()


def _working() -> Path:
    return load_settings().local_dir / WORKING_NAME


@task(name="load-results", **POLICY)
def load_results() -> int:
    """Merge every finished fragment into the working database; returns how many were new."""
    from sparse_probing.warehouse import loading

    with step("Load results"), _one_writer:
        return loading.load_results(_working(), data_root()).n_fragments


@task(name="check-results", **POLICY)
def check_results(run_ids: list[str], datasets: list[str]) -> list[str]:
    """Run every check over the runs and record the outcomes; returns one line per failed check of severity error."""
    from sparse_probing.warehouse import checks

    with step("Check results"), _one_writer:
        results = checks.run_checks(_working(), run_ids)
        of_datasets = [
            result
            for run_id, dataset in zip(run_ids, datasets, strict=True)
            for result in checks.check_dataset(*dataset_frames(located(dataset)), run_id=run_id)
        ]
        checks.record_results(_working(), of_datasets)
        results = [*results, *of_datasets]
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
    with step("Publish"), _one_writer:
        _publish(snapshot)
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
    from sparse_probing.reports import html
    from sparse_probing.warehouse import connect, reads

    settings = load_settings()
    with step("Write report"):
        path = html.write_report(settings.snapshot_path, settings.reports_dir / "index.html")
    with connect(settings.snapshot_path) as connection:
        best = reads.best_neurons(connection, run_ids)
    columns = ("model", "collection", "feature", "layer", "neuron", "validation_mcc", "test_mcc", "q_value")
    rows = [{name: getattr(row, name) for name in columns} for row in best]
    create_table_artifact(key="best-neurons", table=rows, description=f"Best neuron per feature, study {study}")
    lines = [
        f"# Study {study}",
        "",
        f"{len(rows)} features probed.",
        "",
        "| feature | neuron | test MCC |",
        "|---|---|---|",
    ]
    lines += [f"| {r['feature']} | layer {r['layer']}, neuron {r['neuron']} | {r['test_mcc']:.3f} |" for r in rows]
    create_markdown_artifact(key="study-summary", markdown="\n".join(lines), description="Rankings and where they lie")
    return str(path)


@task(name="raise-failed-checks", **POLICY)
def raise_failed_checks(failed: list[str]) -> None:
    """Raise `CheckFailure` if there is anything to raise it for; all is published by now."""
    if failed:
        raise CheckFailure(
            f"{len(failed)} validation check(s) of severity error failed: {'; '.join(failed)}.",
            remedy="Results are published; see: sparse-probing check",
        )


def check_again(run_ids: list[str]) -> None:
    """Run the checks of published runs once more and publish their outcomes; outside of any flow."""
    from sparse_probing.warehouse import checks, loading

    with _one_writer:
        loading.load_results(_working(), data_root())
        checks.run_checks(_working(), run_ids)
        _publish(load_settings().snapshot_path)
