"""Commands that run a study, a part of one, or say how far one is. What is finished answers without Prefect.

Heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

from flows.surroundings import check_prefect, server_in_use
from flows.terminal import console
from sparse_probing.credentials import shown_uri
from sparse_probing.errors import CheckFailure, SparseProbingError

if TYPE_CHECKING:
    from rich.console import Console

    from sparse_probing.config import StudySpec
    from sparse_probing.planning import StudyPlan
    from sparse_probing.settings import Settings


def study(profile: str, settings: Settings, *, parts: int = 1) -> int:
    """Run a study to its end and print its rankings; of a finished one, print them at once."""
    started = time.monotonic()
    spec = _loaded(profile)
    plan = _plan(spec, settings)
    if plan is None or not plan.is_finished:
        run_ids = run_study(spec, profile, settings, plan, parts=parts)
        has_classes = _print_rankings(console(), run_ids, settings)
        print(f"Done in {time.monotonic() - started:.0f} s.")
        _print_places(settings, has_classes=has_classes)
        return 0
    n_runs = len(plan.run_ids)
    print(f"Study {spec.name} was finished: {n_runs} run(s) in {settings.shown_data}; nothing was computed.")
    _renew_report(settings)
    _print_places(settings, has_classes=_print_rankings(console(), plan.run_ids, settings))
    if plan.failed_checks:
        raise CheckFailure.of_results(plan.failed_checks)
    return 0


def _loaded(profile: str) -> StudySpec:
    """A profile's study; one of checkpoints with those that are complete as its models."""
    from sparse_probing.config import load_profile

    spec = load_profile(profile)
    if spec.checkpoints is None:
        return spec
    from sparse_probing.scanning import expanded

    return expanded(spec)


def _plan(spec: StudySpec, settings: Settings) -> StudyPlan | None:
    """The plan of a study; None where no study was begun yet, or the plan cannot be made."""
    from sparse_probing.preflight import check_names

    check_names(spec)
    # No model was resolved here so far: everything is missing.
    if not settings.models_dir.is_dir():
        return None
    from sparse_probing.planning import plan_study

    try:
        return plan_study(spec, settings)
    except (SparseProbingError, OSError):
        # What is wrong is said, with its remedy, where the study begins.
        return None


def _renew_report(settings: Settings) -> None:
    """Write the report where it is missing, or older than the database."""
    from sparse_probing.preflight import check_writable

    page = settings.reports_dir / "index.html"
    if page.is_file() and page.stat().st_mtime >= settings.snapshot_path.stat().st_mtime:
        return
    check_writable(settings)
    from sparse_probing.reports import html

    html.write_report(settings.snapshot_path, page)


def status(profile: str, format: str, settings: Settings) -> int:
    """Print every artifact of a study with its state."""
    from sparse_probing.preflight import check_names

    spec = _loaded(profile)
    check_names(spec)
    from sparse_probing import planning
    from sparse_probing.reports.tables import format_rows

    plan = planning.plan_study(spec, settings)
    rows = list(planning.rows(plan))
    if format == "table":
        names = ("kind", "model", "collection", "hook", "state", "detail", "path")
        print(format_rows(names, [[row[name] or "" for name in names] for row in rows]))
        finished = sum(one.is_finished for one in plan.artifacts)
        print(f"{finished} of {len(plan.artifacts)} artifacts are finished, in {settings.shown_data}.")
        for line in plan.failed_checks:
            print(f"FAILED {line}")
        print(f"Next: sparse-probing study --profile {profile}")
        return 0
    every = (*planning.COLUMNS, "inputs")
    print(format_rows(every, [[row[name] for name in every] for row in rows], format=format))
    return 0


def scan(profile: str, format: str, settings: Settings) -> int:
    """Print every checkpoint of a study, and whether it is complete and studied. Nothing is started."""
    from sparse_probing.config import load_profile
    from sparse_probing.preflight import check_names

    spec = load_profile(profile)
    check_names(spec)
    from sparse_probing import scanning
    from sparse_probing.reports.tables import format_rows

    found = scanning.scan(spec, settings)
    cells = [[row[name] for name in scanning.COLUMNS] for row in scanning.rows(found)]
    if format != "table":
        print(format_rows(scanning.COLUMNS, cells, format=format))
        return 0
    print(format_rows(scanning.COLUMNS, [["" if cell is None else cell for cell in row] for row in cells]))
    new = sum(one.is_new for one in found)
    print(f"{len(found)} checkpoints: {sum(one.studied for one in found)} studied, {new} to be studied.")
    print(f"Next: sparse-probing study --profile {profile}      # all that are complete, now")
    print(f"      sparse-probing up --watch {profile}           # as they appear")
    return 0


def run_study(
    spec: StudySpec, profile: str, settings: Settings, plan: StudyPlan | None = None, *, parts: int = 1
) -> list[str]:
    """Run a study to its end; returns the ids of its runs.

    Parameters
    ----------
    plan:
        What of it is there, if that is known.
    parts:
        How many runs on workers share its work, where there is a server.
    """
    run_ids: list[str] = run_flow("study", spec, profile, settings, plan, parts=parts)
    return run_ids


def run_flow(
    name: Literal["study", "datasets", "extract", "probe", "publish"],
    spec: StudySpec,
    profile: str,
    settings: Settings,
    plan: StudyPlan | None = None,
    **parameters: Any,
) -> Any:
    """Run a flow of a study in this process, on a server that there is or an ephemeral one; returns what it returns."""
    from flows.own_server import enter_server
    from sparse_probing.preflight import check_names, preflight

    check_names(spec)
    enter_server(settings)
    check_prefect()
    preflight(spec, settings)
    terminal, api_url = console(), server_in_use()
    terminal.print(
        f"Study [bold]{spec.name}[/]: {len(spec.models)} model(s) × {len(spec.collections)} collection(s); "
        f"data in {settings.shown_data}; Prefect on {shown_uri(api_url) if api_url else 'an ephemeral server'}."
    )
    from flows import ephemeral

    if not api_url:
        if parameters.get("parts", 1) > 1:
            terminal.print(
                "No server whose workers could take parts: this process does it all. To start one: sparse-probing up"
            )
        ephemeral.leave_no_server()
        # It takes as long to start as all that is imported below.
        ephemeral.begin_server()
    needs_model = name in ("study", "datasets", "extract")
    needs_model &= not (plan is not None and all(pair.is_extracted for pair in plan.pairs))
    if needs_model:
        _warn_of_slow_dtypes(spec, settings)
    from flows.failures import as_one_line, end_with_the_server
    from flows.logs import log_to_file
    from flows.starting import as_parameter
    from flows.study import FLOWS
    from tasks.imports import import_for_datasets
    from tasks.probes import import_for_stages
    from tasks.progress import show_progress

    log = settings.local_dir / "logs" / "study.log"
    if not api_url:
        # What the tasks need is imported while the server starts.
        if needs_model:
            import_for_datasets()
        if name in ("study", "probe"):
            import_for_stages()
        ephemeral.adopt_server()
    try:
        with log_to_file(log), show_progress(terminal), end_with_the_server(api_url) if api_url else nullcontext():
            return FLOWS[name](profile=as_parameter(profile), spec=spec, **parameters)
    except Exception as error:
        raise as_one_line(error, log=log) from error


def _warn_of_slow_dtypes(plan: StudySpec, settings: Settings) -> None:
    from sparse_probing.models.loading import choose_device
    from sparse_probing.models.precision import slow_choices

    for line in slow_choices(plan.models, choose_device(settings.device)):
        print(line, file=sys.stderr)


def _print_rankings(console: Console, run_ids: list[str], settings: Settings) -> bool:
    """The best neuron or probe of each feature; returns whether any feature has classes, or there is none at all."""
    from sparse_probing.reports import tables
    from sparse_probing.warehouse import connect, reads

    with connect(settings.snapshot_path) as connection:
        neurons = reads.best_neurons(connection, run_ids)
        targets = reads.best_target_probes(connection, run_ids)
    if neurons or not targets:
        console.print(tables.best_neurons_table(neurons))
    if targets:
        console.print(tables.best_targets_table(targets))
    return bool(neurons or not targets)


def _print_places(settings: Settings, *, has_classes: bool) -> None:
    """Where the results lie, and what to do next."""
    import shutil
    from pathlib import Path

    print(f"  Database  {settings.snapshot_path}")
    print(f"  Report    {settings.reports_dir / 'index.html'}")
    print(f"  Parquet   {settings.shown_data}/{{datasets,activations,results}}")
    print("Next:")
    activate = Path(sys.executable).with_name("activate")
    if shutil.which("sparse-probing") is None and activate.is_file():
        shown = activate.relative_to(Path.cwd()) if activate.is_relative_to(Path.cwd()) else activate
        print(f"  . {shown}        # puts sparse-probing and prefect on the path")
    best = "layer, neuron, test_mcc from best_neuron_per_feature order by test_mcc desc"
    if not has_classes:
        best = "variant, k, layer, test_r2, test_r2_low, test_r2_high from baselines order by feature, test_r2 desc"
    for command in (
        f'sparse-probing sql "select feature, {best}"',
        "sparse-probing check --all",
        "sparse-probing up        # a Prefect server with scheduled deployments, on this machine",
    ):
        print(f"  {command}")


def datasets(profile: str, settings: Settings) -> int:
    """Build and check the datasets of a study."""
    for paths in run_flow("datasets", _loaded(profile), profile, settings):
        for path in paths:
            print(f"finished  {settings.shown_data}/{path}")
    print(f"Next: sparse-probing extract --profile {profile}")
    return 0


def extract(profile: str, settings: Settings, *, shard: str | None, ranges: bool, parts: int) -> int:
    """Extract a study's activations: whole, in parts that workers take, or one part by hand."""
    if shard is None and not ranges:
        spec = _loaded(profile)
        for path in run_flow("extract", spec, profile, settings, _plan(spec, settings), parts=parts):
            print(f"finished  {settings.shown_data}/{path}")
        print(f"Next: sparse-probing probe --profile {profile}")
        return 0
    part = None if shard is None else _part(shard)
    from sparse_probing.preflight import preflight

    plan = _loaded(profile)
    preflight(plan, settings)
    from tasks.activations import extract_by_hand, is_extracted
    from tasks.progress import show_progress

    with show_progress(console(), with_prefect=False):
        paths = extract_by_hand(plan, part, only_ranges=ranges)
    if ranges:
        print("The quantisation ranges are taken.")
        print(f"Next: sparse-probing extract --profile {profile} --shard 0/N   # and 1/N, …, on as many machines")
        return 0
    unfinished = 0
    for path in paths:
        finished = is_extracted(path)
        unfinished += not finished
        print(f"{'finished' if finished else 'other parts at work'}  {settings.shown_data}/{path}")
    if unfinished:
        print(f"Part {shard} is done; {unfinished} of {len(paths)} artifacts wait for other parts.")
        print(f"Next: the parts of {shard} that have not been run, or this command again for any that failed")
    else:
        print(f"Next: sparse-probing study --profile {profile}")
    return 0


def probe(
    profile: str,
    settings: Settings,
    *,
    method: str | None,
    features: str | None,
    layers: str | None,
    parts: int,
) -> int:
    """Probe what is extracted, or with one method, on some features and layers; publish nothing."""
    from sparse_probing.planning import narrowed, plan_study
    from sparse_probing.preflight import check_names
    from sparse_probing.store.filesystem import Location

    spec = _loaded(profile)
    check_names(spec)
    plan = plan_study(spec, settings)
    if method or features or layers:
        chosen = [name.strip() for name in features.split(",")] if features else []
        spec = narrowed(
            plan, Location.open(settings.data_uri), method=method, features=chosen, layers=_layers(layers or "")
        )
        plan = plan_study(spec, settings)
    run_ids = run_flow("probe", spec, profile, settings, plan, parts=parts)
    for run_id in run_ids:
        print(f"finished  run {run_id}  {settings.shown_data}/results/*/{run_id}")
    print(f"Next: sparse-probing publish --profile {profile}   # all finished runs of the data folder, this one too")
    return 0


def _layers(text: str) -> list[int]:
    """``0-2,5`` as numbers."""
    from sparse_probing.errors import InputError

    found: set[int] = set()
    for item in filter(None, (item.strip() for item in text.split(","))):
        first, dash, last = item.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise InputError(f"--layers is {text!r}; expected numbers and ranges.", remedy="For example: 0-2,5")
        found.update(range(int(first), int(last if dash else first) + 1))
    return sorted(found)


def publish(profile: str, settings: Settings) -> int:
    """Publish the finished runs of a study, with every other finished run of the data folder."""
    spec = _loaded(profile)
    run_ids = run_flow("publish", spec, profile, settings, _plan(spec, settings))
    _print_places(settings, has_classes=_print_rankings(console(), run_ids, settings))
    return 0


def _part(text: str) -> tuple[int, int]:
    """``I/N`` as two numbers."""
    from sparse_probing.errors import InputError

    part, slash, n_parts = text.partition("/")
    if not (slash and part.isdecimal() and n_parts.isdecimal() and int(part) < int(n_parts)):
        raise InputError(
            f"--shard is {text!r}; expected I/N with 0 ≤ I < N.",
            remedy="For two machines: 0/2 on one, 1/2 on the other.",
        )
    return int(part), int(n_parts)


def estimate(profile: str, settings: Settings) -> int:
    from sparse_probing.config import load_profile
    from sparse_probing.preflight import preflight

    plan = load_profile(profile)
    preflight(plan, settings)
    from flows.estimates import COLUMNS, estimate_study
    from sparse_probing.reports import tables
    from tasks.progress import show_progress

    _warn_of_slow_dtypes(plan, settings)
    with show_progress(console(), with_prefect=False):
        rows = estimate_study(plan, settings)
    print(tables.format_rows(COLUMNS, rows))
    print(f"Datasets built under {settings.shown_data}; nothing extracted. Sizes are before compression.")
    print(f"Next: sparse-probing study --profile {profile}")
    return 0
