"""Commands that look at what there is: collections, architectures, results, checks; and those that keep it in order.

Each prints what it did and the next useful command, and returns an exit code. Heavy imports happen inside the command that
needs them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from flows.terminal import console
from sparse_probing.errors import SparseProbingError
from sparse_probing.settings import Settings


def architectures(model: str | None, format: str, settings: Settings) -> int:
    from sparse_probing.config import ModelSpec
    from sparse_probing.models import architectures, loading
    from sparse_probing.reports import tables

    if model is None:
        print(tables.format_rows(architectures.OVERVIEW_COLUMNS, architectures.overview(), format=format))
        return 0
    folder = loading.local_folder(ModelSpec(id=model), models_dir=settings.models_dir)
    rows = architectures.describe(loading.without_weights(folder))
    cells = [(row.hook, row.module, row.width, row.layer_ranges, row.lacks) for row in rows]
    print(tables.format_rows(("hook", "module", "width", "layers", "lacks"), cells, format=format))
    if format == "table":
        print("Next: sparse-probing profile new   (extraction.hook takes one of these, or a module's path)")
    return 0


def collections() -> int:
    from sparse_probing.config import profile_names
    from sparse_probing.datasets import registry

    for name in registry.collection_names():
        collection = registry.get_collection(name)
        print(f"{name:<24} {collection.summary}")
    print(f"\nProfiles: {', '.join(profile_names())}")
    print("Next: sparse-probing collections NAME   or   sparse-probing profile new")
    return 0


def collection(name: str) -> int:
    from sparse_probing import profile_keys

    print(profile_keys.collection_page(name))
    print("\nNext: sparse-probing profile new   writes a profile with every option")
    return 0


def new_profile(file: str) -> int:
    from sparse_probing import profile_keys
    from sparse_probing.settings import user_path

    path = profile_keys.write_profile(user_path(file))
    print(f"Profile written to {path.absolute()}: every section and key, with defaults.")
    print(f"Next: edit it, then: sparse-probing estimate --profile {path}")
    return 0


def sql(options: argparse.Namespace, settings: Settings) -> int:
    snapshot = _published(settings)
    from sparse_probing.reports import tables
    from sparse_probing.warehouse import connect
    from sparse_probing.warehouse.asking import Limits, ask, bounded_process

    limits = Limits(memory_gb=options.memory_gb, seconds=options.seconds)
    query = sys.stdin.read() if options.query == "-" else options.query
    with (
        connect(snapshot) as connection,
        bounded_process(limits),
        ask(connection, query, limits, end=_end_process) as answer,
    ):
        tables.write_rows(sys.stdout, answer.columns, answer, format=options.format)
    return 0


def _published(settings: Settings) -> Path:
    """The newest published database, of whatever machine; raises `InputError` if there is none."""
    from sparse_probing.preflight import check_published

    # Where all is local, without importing a database.
    if "://" not in settings.data_uri:
        check_published(settings)
        return settings.snapshot_path
    from sparse_probing.warehouse.shared import latest_snapshot

    snapshot = latest_snapshot(settings)
    if not snapshot.is_file():
        check_published(settings)
    return snapshot


def _end_process(error: SparseProbingError) -> None:
    """The last resort where nothing in this process hears of its end; what it only reads stays whole."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"sparse-probing: {error}\n".encode())
    os._exit(error.exit_code)


def check(options: argparse.Namespace, settings: Settings) -> int:
    from sparse_probing.preflight import check_published, check_writable

    check_published(settings)
    check_writable(settings)
    from sparse_probing.warehouse import connect, reads
    from tasks.progress import show_progress
    from tasks.warehouse import check_again

    with connect(settings.snapshot_path) as connection:
        run_ids = [run.run_id for run in reads.runs(connection)]
    with show_progress(console(), with_prefect=False):
        check_again(run_ids)
    with connect(settings.snapshot_path) as connection:
        results = reads.checks(connection)
    for result in results:
        if options.all or not result.passed:
            state = "passed" if result.passed else f"FAILED ({result.severity}, {result.violations})"
            title = f"{result.model} · {result.collection}" if result.model else result.run_id
            print(f"{state:<22} {result.name:<36} {title}" + (f"  {result.detail}" if result.detail else ""))
    failed = [result for result in results if not result.passed]
    errors = sum(result.severity == "error" for result in failed)
    print(f"{len(results)} checks of {len(run_ids)} runs: {len(failed)} failed, {errors} of severity error.")
    print('Next: sparse-probing sql "select * from validation_checks where not passed"')
    return 1 if errors else 0


def repair(settings: Settings) -> int:
    from flows.own_server import enter_server

    # Before Prefect is imported, which reads its settings once.
    enter_server(settings)
    from flows import studies
    from tasks.progress import show_progress
    from tasks.repair import find_and_set_aside, studies_to_repeat
    from tasks.warehouse import publish_again

    with show_progress(console(), with_prefect=False):
        n_artifacts, set_aside = find_and_set_aside()
        publish_again()
    print(f"{n_artifacts} artifacts were read: {len(set_aside)} damaged.")
    plans, unknown = studies_to_repeat(set_aside)
    for plan in plans:
        studies.run_study(plan, plan.name, settings)
    for path in unknown:
        print(f"{path} is made anew by the next study that needs it.")
    if plans:
        print(
            f"Made anew: {len(set_aside) - len(unknown)} artifacts. What was damaged lies in {settings.shown_data}/set_aside"
        )
    print("Next: sparse-probing check")
    return 0


def free(delete: bool, settings: Settings, *, activations: bool = False) -> int:
    from tasks.freeing import find_freeable, free
    from tasks.progress import show_progress

    with show_progress(console(), with_prefect=False):
        found = find_freeable(activations=activations)
    for one in found:
        print(f"{one.size_bytes / 1e6:>10,.1f} MB  {one.location}  ({one.why})")
    megabytes = sum(one.size_bytes for one in found) / 1e6
    if not found:
        print(f"Nothing in {settings.shown_data} can be freed.")
    elif delete:
        with show_progress(console(), with_prefect=False):
            free(found)
        print(f"Freed: {megabytes:,.1f} MB.")
    else:
        print(f"{megabytes:,.1f} MB can be freed.")
        print(f"Next: sparse-probing gc{' --activations' if activations else ''} --delete")
    return 0


def report(settings: Settings) -> int:
    from sparse_probing.preflight import check_writable

    snapshot = _published(settings)
    check_writable(settings)
    from sparse_probing.reports import html

    print(f"Report written to {html.write_report(snapshot, settings.reports_dir / 'index.html')}")
    print("Next: open it in a browser; it needs nothing else.")
    return 0


def export_neurons(folder: str, settings: Settings) -> int:
    snapshot = _published(settings)
    from sparse_probing.reports import neuron_lists

    written = neuron_lists.write_lists(snapshot, Path(folder))
    for path, n_rows in written.items():
        print(f"{n_rows:>7,} neurons  {path}")
    print('Next: sparse-probing sql "select * from interest_thresholds"   # what makes a neuron one of interest')
    return 0
