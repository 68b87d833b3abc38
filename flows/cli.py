"""The command line: thin, quick to start, one clear line for a mistake. All work is in the flows and the library.

Heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NoReturn

from flows.surroundings import check_prefect, check_prefect_home, prepare_environment, server_in_use
from sparse_probing import __version__
from sparse_probing.credentials import show_traceback, shown_uri
from sparse_probing.errors import SparseProbingError

if TYPE_CHECKING:
    from rich.console import Console

    from sparse_probing.config import StudySpec
    from sparse_probing.settings import Settings


class _OneLineParser(argparse.ArgumentParser):
    """A parser that answers a mistake in one line, with the command or value that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        import re

        from sparse_probing.mistakes import did_you_mean

        match = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        end = did_you_mean(match[1], re.findall(r"[\w-]+", match[2])) if match else "."
        self.exit(2, f"sparse-probing: {' '.join(message.split())}{end} See: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _OneLineParser(
        prog="sparse-probing",
        description="Which neurons of a language model respond to a feature, and how sure are we?",
        epilog="Start with: sparse-probing demo",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--data", metavar="FOLDER", help="data folder or URI (default: $SPARSE_PROBING_DATA or ./data)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    commands.add_parser("demo", help="probe a small real model on real text, from installed packages")

    study = commands.add_parser("study", help="run a study: datasets, activations, probes, published results")
    study.add_argument("--profile", required=True, metavar="NAME|FILE", help="a named profile, or a TOML file")

    extract = commands.add_parser("extract", help="a study's datasets and activations alone, or one part of them")
    extract.add_argument("--profile", required=True, metavar="NAME|FILE", help="a named profile, or a TOML file")
    extract.add_argument(
        "--shard",
        metavar="I/N",
        help="only part I of N, counted from 0; run all N at once, on machines that share the data folder",
    )

    estimate = commands.add_parser("estimate", help="what a study's extraction will cost, from a short trial")
    estimate.add_argument("--profile", default="demo", metavar="NAME|FILE", help="default: demo")

    collections = commands.add_parser("collections", help="list the feature collections and profiles")
    collections.add_argument("name", nargs="?", metavar="NAME", help="one collection: its features and options")

    architectures = commands.add_parser("architectures", help="which hooks a model offers, or each architecture known")
    architectures.add_argument(
        "model",
        nargs="?",
        metavar="FOLDER",
        help="a model as models.id names it: a folder, .gguf file, hub id or package:NAME",
    )
    architectures.add_argument("--format", choices=("table", "csv", "json", "markdown"), default="table")

    profile = commands.add_parser("profile", help="write a profile of your own")
    new = profile.add_subparsers(dest="action", metavar="ACTION", required=True).add_parser(
        "new", help="write a commented profile with every section and key"
    )
    new.add_argument("file", nargs="?", default="mine.toml", metavar="FILE", help="default: mine.toml")

    sql = commands.add_parser("sql", help="query the published results, read-only")
    sql.add_argument("query", help="one SQL statement; '-' reads it from standard input")
    sql.add_argument(
        "--format",
        choices=("table", "csv", "json"),
        default="table",
        help="a table has its first 1,000 rows, others all",
    )
    sql.add_argument("--memory-gb", type=float, default=2.0, metavar="N", help="memory that the query may take: 2")
    sql.add_argument("--seconds", type=float, default=300.0, metavar="N", help="time that the query may take: 300")

    check = commands.add_parser("check", help="run the validation checks again; exit 1 if one of severity error fails")
    check.add_argument("--all", action="store_true", help="list passed checks too")

    commands.add_parser("repair", help="read all that is stored; what is damaged is set aside and made anew")

    freeing = commands.add_parser("gc", help="what nobody needs any more: superseded runs, and what was set aside")
    freeing.add_argument("--delete", action="store_true", help="free it; without this it is only listed")

    commands.add_parser("report", help="write the HTML report from the published results")

    neurons = commands.add_parser("neurons", help="lists of neurons to pass on")
    neuron_actions = neurons.add_subparsers(dest="action", metavar="ACTION", required=True)
    export = neuron_actions.add_parser(
        "export", help="a CSV file a model, in the layout of the paper's published lists"
    )
    export.add_argument("folder", metavar="DIR", help="where to write; files of the same names are replaced")

    up = commands.add_parser("up", help="start a Prefect server, pool, worker and deployments on this machine")
    up.add_argument("--port", type=int, default=os.environ.get("PREFECT_SERVER_API_PORT") or "4200")
    commands.add_parser("deploy", help="make pool and deployments on the server that PREFECT_API_URL names")
    commands.add_parser("down", help="stop what 'up' started")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 failed, 2 cannot be done as asked)."""
    options = build_parser().parse_args(arguments)
    prepare_environment()
    if options.data:
        os.environ["SPARSE_PROBING_DATA"] = options.data
    try:
        from sparse_probing.settings import load_settings

        return _run(options, load_settings())
    except SparseProbingError as error:
        print(f"sparse-probing: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("sparse-probing: interrupted; the same command goes on where this one stopped.", file=sys.stderr)
        return 130


def entry_point() -> None:
    """Console script."""
    sys.excepthook = show_traceback
    sys.exit(main())


def _run(options: argparse.Namespace, settings: Settings) -> int:
    if options.command in ("demo", "study"):
        return _study("demo" if options.command == "demo" else options.profile, settings)
    if options.command == "extract":
        return _extract(options.profile, options.shard, settings)
    if options.command == "estimate":
        return _estimate(options.profile, settings)
    if options.command == "architectures":
        return _architectures(options.model, options.format, settings)
    if options.command == "collections":
        return _collections() if options.name is None else _collection(options.name)
    if options.command == "profile":
        return _new_profile(options.file)
    if options.command == "sql":
        return _sql(options, settings)
    if options.command == "check":
        return _check(options, settings)
    if options.command == "repair":
        return _repair(settings)
    if options.command == "gc":
        return _free(options.delete, settings)
    if options.command == "report":
        return _report(settings)
    if options.command == "neurons":
        return _export_neurons(options.folder, settings)
    from flows import services

    if options.command in ("up", "deploy"):
        check_prefect_home()
    if options.command == "up":
        return services.up(settings, port=options.port)
    if options.command == "deploy":
        return services.deploy(settings)
    return services.down(settings)


def _console() -> Console:
    from rich.console import Console

    # Tables are cut to the terminal; a file or a pipe has no width.
    return Console() if sys.stdout.isatty() else Console(width=132)


def _study(profile: str, settings: Settings) -> int:
    from sparse_probing.config import load_profile

    started = time.monotonic()
    plan = load_profile(profile)
    run_ids = _run_study(plan, profile, settings)
    _summary(_console(), run_ids, settings, time.monotonic() - started)
    return 0


def _run_study(plan: StudySpec, profile: str, settings: Settings) -> list[str]:
    """Run a study to its end; returns the ids of its runs."""
    from sparse_probing.preflight import check_names, preflight

    check_names(plan)
    from flows.own_server import enter_server

    enter_server(settings)
    check_prefect()
    preflight(plan, settings)
    console = _console()
    api_url = server_in_use()
    console.print(
        f"Study [bold]{plan.name}[/]: {len(plan.models)} model(s) × {len(plan.collections)} collection(s); "
        f"data in {settings.shown_data}; Prefect on {shown_uri(api_url) if api_url else 'an ephemeral server'}."
    )
    _warn_of_slow_dtypes(plan, settings)
    from flows.ephemeral import leave_no_server
    from flows.failures import as_one_line, end_with_the_server
    from flows.logs import log_to_file
    from flows.study import study
    from tasks.progress import show_progress

    log = settings.local_dir / "logs" / "study.log"
    if not api_url:
        leave_no_server()
    try:
        with log_to_file(log), show_progress(console), end_with_the_server(api_url) if api_url else nullcontext():
            run_ids: list[str] = study(profile=profile, spec=plan)
            return run_ids
    except Exception as error:
        raise as_one_line(error, log=log) from error


def _warn_of_slow_dtypes(plan: StudySpec, settings: Settings) -> None:
    from sparse_probing.models.loading import choose_device
    from sparse_probing.models.precision import slow_choices

    for line in slow_choices(plan.models, choose_device(settings.device)):
        print(line, file=sys.stderr)


def _summary(console: Console, run_ids: list[str], settings: Settings, seconds: float) -> None:
    import shutil
    from pathlib import Path

    from sparse_probing.reports import tables
    from sparse_probing.warehouse import connect, reads

    with connect(settings.snapshot_path) as connection:
        neurons = reads.best_neurons(connection, run_ids)
        targets = reads.best_target_probes(connection, run_ids)
    if neurons or not targets:
        console.print(tables.best_neurons_table(neurons))
    if targets:
        console.print(tables.best_targets_table(targets))
    console.print(f"Done in {seconds:.0f} s.")
    console.print(f"  Database  {settings.snapshot_path}", highlight=False, soft_wrap=True)
    console.print(f"  Report    {settings.reports_dir / 'index.html'}", highlight=False, soft_wrap=True)
    console.print(
        f"  Parquet   {settings.shown_data}/{{datasets,activations,results}}", highlight=False, soft_wrap=True
    )
    console.print("Next:")
    activate = Path(sys.executable).with_name("activate")
    if shutil.which("sparse-probing") is None and activate.is_file():
        shown = activate.relative_to(Path.cwd()) if activate.is_relative_to(Path.cwd()) else activate
        console.print(
            f"  . {shown}        # puts sparse-probing and prefect on the path", highlight=False, soft_wrap=True
        )
    best = "layer, neuron, test_mcc from best_neuron_per_feature order by test_mcc desc"
    if not neurons and targets:
        best = "variant, k, layer, test_r2, test_r2_low, test_r2_high from baselines order by feature, test_r2 desc"
    for command in (
        f'sparse-probing sql "select feature, {best}"',
        "sparse-probing check --all",
        "sparse-probing up        # a Prefect server with scheduled deployments, on this machine",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True, markup=False)


def _extract(profile: str, shard: str | None, settings: Settings) -> int:
    part = None if shard is None else _part(shard)
    from sparse_probing.config import load_profile
    from sparse_probing.preflight import preflight

    plan = load_profile(profile)
    preflight(plan, settings)
    console = _console()
    from tasks.activations import extract_activations, is_extracted
    from tasks.datasets import build_dataset, check_dataset, resolve_model
    from tasks.progress import show_progress

    # The tasks' bodies, without a server: parts need nothing in common but the data folder.
    references = []
    with show_progress(console, with_prefect=False):
        for model in plan.models:
            resolve_model.fn(model, plan.collections, plan.extractions)
        for model in plan.models:
            for collection in plan.collections:
                dataset = check_dataset.fn(build_dataset.fn(model, collection))
                references += extract_activations.fn(model, dataset, plan.extractions, part)
    unfinished = 0
    for reference in references:
        finished = is_extracted(reference)
        unfinished += not finished
        print(f"{'finished' if finished else 'other parts at work'}  {settings.shown_data}/{reference}")
    if unfinished:
        print(f"Part {shard} is done; {unfinished} of {len(references)} artifacts wait for other parts.")
        print(f"Next: the parts of {shard} that have not been run, or this command again for any that failed")
    else:
        print(f"Next: sparse-probing study --profile {profile}")
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


def _estimate(profile: str, settings: Settings) -> int:
    from sparse_probing.config import load_profile
    from sparse_probing.preflight import preflight

    plan = load_profile(profile)
    preflight(plan, settings)
    from sparse_probing.activations import estimate
    from sparse_probing.datasets import build
    from sparse_probing.models import loading
    from sparse_probing.reports import tables
    from tasks.datasets import resolve_model, say_doubts
    from tasks.locations import data_root
    from tasks.models import resolved_model
    from tasks.progress import reporter, show_progress, step

    _warn_of_slow_dtypes(plan, settings)
    columns = ("model", "collection", "sequences", "tokens", "rows", "MB a layer", "MB in all", "memory MB", "seconds")
    rows: list[tuple[object, ...]] = []
    console = _console()
    with show_progress(console, with_prefect=False):
        for model in plan.models:
            resolve_model.fn(model, plan.collections, plan.extractions)
            resolved = resolved_model(model)
            tokenizer = loading.load_tokenizer(resolved)
            for collection in plan.collections:
                dataset = build.build_dataset(
                    collection,
                    root=data_root(),
                    tokenizer=tokenizer,
                    tokenizer_digest=resolved.tokenizer_digest,
                    progress=reporter(f"Build {collection.collection}", "documents"),
                )
                say_doubts(model.short_name, collection.collection, dataset)
                with step(f"Try {collection.collection}"):
                    cost = estimate.estimate(dataset, resolved, plan.extractions, device=settings.device)
                estimate.check_space(cost, data_root(), plan.extraction)
                sizes = [round(size / 1e6, 1) for size in (cost.layer_bytes, cost.stored_bytes, cost.host_bytes)]
                seconds = None if cost.seconds is None else round(cost.seconds, 1)
                names = (model.short_name, collection.collection)
                rows.append((*names, cost.n_sequences, cost.n_tokens, cost.n_rows, *sizes, seconds))
    print(tables.format_rows(columns, rows))
    print(f"Datasets built under {settings.shown_data}; nothing extracted. Sizes are before compression.")
    print(f"Next: sparse-probing study --profile {profile}")
    return 0


def _architectures(model: str | None, format: str, settings: Settings) -> int:
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


def _collections() -> int:
    from sparse_probing.config import profile_names
    from sparse_probing.datasets import registry

    for name in registry.collection_names():
        collection = registry.get_collection(name)
        print(f"{name:<24} {collection.summary}")
    print(f"\nProfiles: {', '.join(profile_names())}")
    print("Next: sparse-probing collections NAME   or   sparse-probing profile new")
    return 0


def _collection(name: str) -> int:
    from sparse_probing import profile_keys

    print(profile_keys.collection_page(name))
    print("\nNext: sparse-probing profile new   writes a profile with every option")
    return 0


def _new_profile(file: str) -> int:
    from sparse_probing import profile_keys
    from sparse_probing.settings import user_path

    path = profile_keys.write_profile(user_path(file))
    print(f"Profile written to {path.absolute()}: every section and key, with defaults.")
    print(f"Next: edit it, then: sparse-probing estimate --profile {path}")
    return 0


def _sql(options: argparse.Namespace, settings: Settings) -> int:
    from sparse_probing.preflight import check_published

    check_published(settings)
    from sparse_probing.reports import tables
    from sparse_probing.warehouse import connect
    from sparse_probing.warehouse.asking import Limits, ask, bounded_process

    limits = Limits(memory_gb=options.memory_gb, seconds=options.seconds)
    query = sys.stdin.read() if options.query == "-" else options.query
    with (
        connect(settings.snapshot_path) as connection,
        bounded_process(limits),
        ask(connection, query, limits, end=_end_process) as answer,
    ):
        tables.write_rows(sys.stdout, answer.columns, answer, format=options.format)
    return 0


def _end_process(error: SparseProbingError) -> None:
    """The last resort where nothing in this process hears of its end; what it only reads stays whole."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"sparse-probing: {error}\n".encode())
    os._exit(error.exit_code)


def _check(options: argparse.Namespace, settings: Settings) -> int:
    from sparse_probing.preflight import check_published, check_writable

    check_published(settings)
    check_writable(settings)
    from sparse_probing.warehouse import connect, reads
    from tasks.progress import show_progress
    from tasks.warehouse import check_again

    with connect(settings.snapshot_path) as connection:
        run_ids = [run.run_id for run in reads.runs(connection)]
    with show_progress(_console(), with_prefect=False):
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


def _repair(settings: Settings) -> int:
    from flows.own_server import enter_server

    # Before Prefect is imported, which reads its settings once.
    enter_server(settings)
    from tasks.progress import show_progress
    from tasks.repair import find_and_set_aside, studies_to_repeat
    from tasks.warehouse import publish_again

    with show_progress(_console(), with_prefect=False):
        n_artifacts, set_aside = find_and_set_aside()
        publish_again()
    print(f"{n_artifacts} artifacts were read: {len(set_aside)} damaged.")
    plans, unknown = studies_to_repeat(set_aside)
    for plan in plans:
        _run_study(plan, plan.name, settings)
    for path in unknown:
        print(f"{path} is made anew by the next study that needs it.")
    if plans:
        print(
            f"Made anew: {len(set_aside) - len(unknown)} artifacts. What was damaged lies in {settings.shown_data}/set_aside"
        )
    print("Next: sparse-probing check")
    return 0


def _free(delete: bool, settings: Settings) -> int:
    from tasks.freeing import find_freeable, free
    from tasks.progress import show_progress

    found = find_freeable()
    for one in found:
        print(f"{one.size_bytes / 1e6:>10,.1f} MB  {one.location}  ({one.why})")
    megabytes = sum(one.size_bytes for one in found) / 1e6
    if not found:
        print(f"Nothing in {settings.shown_data} can be freed.")
    elif delete:
        with show_progress(_console(), with_prefect=False):
            free(found)
        print(f"Freed: {megabytes:,.1f} MB.")
    else:
        print(f"{megabytes:,.1f} MB can be freed.")
        print("Next: sparse-probing gc --delete")
    return 0


def _report(settings: Settings) -> int:
    from sparse_probing.preflight import check_published, check_writable

    check_published(settings)
    check_writable(settings)
    from sparse_probing.reports import html

    print(f"Report written to {html.write_report(settings.snapshot_path, settings.reports_dir / 'index.html')}")
    print("Next: open it in a browser; it needs nothing else.")
    return 0


def _export_neurons(folder: str, settings: Settings) -> int:
    from pathlib import Path

    from sparse_probing.reports import neuron_lists

    written = neuron_lists.write_lists(settings.snapshot_path, Path(folder))
    for path, n_rows in written.items():
        print(f"{n_rows:>7,} neurons  {path}")
    print('Next: sparse-probing sql "select * from interest_thresholds"   # what makes a neuron one of interest')
    return 0


if __name__ == "__main__":
    entry_point()
