"""The command line: thin, quick to start, one clear line for a mistake. All work is in the flows and the library.

Heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from flows.surroundings import check_prefect_home, prepare_environment
from sparse_probing import __version__
from sparse_probing.credentials import show_traceback
from sparse_probing.errors import SparseProbingError

if TYPE_CHECKING:
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
    actions = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    actions.add_parser("demo", help="probe a small real model on real text, from installed packages")

    study = actions.add_parser("study", help="run a study: datasets, activations, probes, published results")
    study.add_argument("--profile", required=True, metavar="NAME|FILE", help="a named profile, or a TOML file")
    _add_parts(study)

    status = actions.add_parser("status", help="how far a study is: each artifact finished, partial or missing")
    status.add_argument("--profile", required=True, metavar="NAME|FILE", help="a named profile, or a TOML file")
    status.add_argument("--format", choices=("table", "csv", "json"), default="table")

    datasets = actions.add_parser("datasets", help="build and check a study's datasets alone")
    datasets.add_argument("--profile", required=True, metavar="NAME|FILE", help="a named profile, or a TOML file")

    extract = actions.add_parser("extract", help="a study's datasets and activations alone, or one part of them")
    extract.add_argument("--profile", required=True, metavar="NAME|FILE", help="a named profile, or a TOML file")
    by_hand = extract.add_mutually_exclusive_group()
    by_hand.add_argument(
        "--ranges", action="store_true", help="take the quantisation ranges alone, before parts by hand"
    )
    by_hand.add_argument(
        "--shard",
        metavar="I/N",
        help="only part I of N by hand, counted from 0; run all N, on machines that share the data folder",
    )
    _add_parts(by_hand)

    probe = actions.add_parser("probe", help="a study's probes alone, or one method on chosen features and layers")
    probe.add_argument("method", nargs="?", metavar="METHOD", help="one of the sixteen; the study's own if absent")
    probe.add_argument("--profile", required=True, metavar="NAME|FILE", help="a named profile, or a TOML file")
    probe.add_argument("--features", metavar="A,B", help="features to probe; all if absent")
    probe.add_argument("--layers", metavar="0-2,5", help="layers to probe; all if absent")
    _add_parts(probe)

    publish = actions.add_parser("publish", help="load, check and publish the finished runs")
    publish.add_argument("--profile", required=True, metavar="NAME|FILE", help="a named profile, or a TOML file")

    checkpoints = actions.add_parser(
        "checkpoints", help="checkpoints of a model in training: what is there, what is studied"
    )
    checkpoint_actions = checkpoints.add_subparsers(dest="action", metavar="ACTION", required=True)
    scan = checkpoint_actions.add_parser("scan", help="list every checkpoint: complete, studied, or why not")
    scan.add_argument("--profile", required=True, metavar="NAME|FILE", help="a profile with a section [checkpoints]")
    scan.add_argument("--format", choices=("table", "csv", "json"), default="table")
    watch = checkpoint_actions.add_parser("watch", help="have a server's worker study new checkpoints as they appear")
    watch.add_argument("--profile", required=True, metavar="FILE", help="a profile with a section [checkpoints]")
    watch.add_argument("--seconds", type=_seconds, default=30, metavar="N", help="time between two scans: 30")

    estimate = actions.add_parser("estimate", help="what a study's extraction will cost, from a short trial")
    estimate.add_argument("--profile", default="demo", metavar="NAME|FILE", help="default: demo")

    collections = actions.add_parser("collections", help="list the feature collections and profiles")
    collections.add_argument("name", nargs="?", metavar="NAME", help="one collection: its features and options")

    architectures = actions.add_parser("architectures", help="which hooks a model offers, or each architecture known")
    architectures.add_argument(
        "model",
        nargs="?",
        metavar="FOLDER",
        help="a model as models.id names it: a folder, .gguf file, hub id or package:NAME",
    )
    architectures.add_argument("--format", choices=("table", "csv", "json", "markdown"), default="table")

    profile = actions.add_parser("profile", help="write a profile of your own")
    new = profile.add_subparsers(dest="action", metavar="ACTION", required=True).add_parser(
        "new", help="write a commented profile with every section and key"
    )
    new.add_argument("file", nargs="?", default="mine.toml", metavar="FILE", help="default: mine.toml")

    sql = actions.add_parser("sql", help="query the published results, read-only")
    sql.add_argument("query", help="one SQL statement; '-' reads it from standard input")
    sql.add_argument(
        "--format",
        choices=("table", "csv", "json"),
        default="table",
        help="a table has its first 1,000 rows, others all",
    )
    sql.add_argument("--memory-gb", type=float, default=2.0, metavar="N", help="memory that the query may take: 2")
    sql.add_argument("--seconds", type=float, default=300.0, metavar="N", help="time that the query may take: 300")

    check = actions.add_parser("check", help="run the validation checks again; exit 1 if one of severity error fails")
    check.add_argument("--all", action="store_true", help="list passed checks too")

    runs = actions.add_parser("runs", help="what ran on the server: state, time, and the time of each stage")
    runs.add_argument(
        "--limit", type=_whole_number, default=20, metavar="N", help="at most so many, the newest first: 20"
    )
    runs.add_argument("--format", choices=("table", "csv", "json"), default="table")

    actions.add_parser("repair", help="read all that is stored; what is damaged is set aside and made anew")

    freeing = actions.add_parser("gc", help="what nobody needs any more: superseded runs, and what was set aside")
    freeing.add_argument(
        "--activations", action="store_true", help="activations too, where every run of them is finished and published"
    )
    freeing.add_argument("--delete", action="store_true", help="free it; without this it is only listed")

    actions.add_parser("report", help="write the HTML report from the published results")

    neurons = actions.add_parser("neurons", help="lists of neurons to pass on")
    neuron_actions = neurons.add_subparsers(dest="action", metavar="ACTION", required=True)
    export = neuron_actions.add_parser(
        "export", help="a CSV file a model, in the layout of the paper's published lists"
    )
    export.add_argument("folder", metavar="DIR", help="where to write; files of the same names are replaced")

    up = actions.add_parser("up", help="start a Prefect server, pool, worker and deployments on this machine")
    up.add_argument("--port", type=int, default=os.environ.get("PREFECT_SERVER_API_PORT") or "4200")
    up.add_argument(
        "--watch",
        action="append",
        default=[],
        metavar="FILE",
        help="study new checkpoints of this profile as they appear; may be given several times",
    )
    actions.add_parser("deploy", help="make pool and deployments on the server that PREFECT_API_URL names")
    actions.add_parser("down", help="stop what 'up' started")
    return parser


def _add_parts(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--parts",
        type=_whole_number,
        default=1,
        metavar="N",
        help="share the work among N runs on a server's workers: 1",
    )


def _whole_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000")
    return int(text)


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 5 <= int(text) <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 5 to 86400")
    return int(text)


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
    from flows import commands, studies

    if options.command in ("demo", "study"):
        is_demo = options.command == "demo"
        return studies.study("demo" if is_demo else options.profile, settings, parts=1 if is_demo else options.parts)
    if options.command == "status":
        return studies.status(options.profile, options.format, settings)
    if options.command == "extract":
        return studies.extract(
            options.profile, settings, shard=options.shard, ranges=options.ranges, parts=options.parts
        )
    if options.command == "datasets":
        return studies.datasets(options.profile, settings)
    if options.command == "probe":
        return studies.probe(
            options.profile,
            settings,
            method=options.method,
            features=options.features,
            layers=options.layers,
            parts=options.parts,
        )
    if options.command == "publish":
        return studies.publish(options.profile, settings)
    if options.command == "checkpoints" and options.action == "scan":
        return studies.scan(options.profile, options.format, settings)
    if options.command == "estimate":
        return studies.estimate(options.profile, settings)
    if options.command == "architectures":
        return commands.architectures(options.model, options.format, settings)
    if options.command == "collections":
        return commands.collections() if options.name is None else commands.collection(options.name)
    if options.command == "profile":
        return commands.new_profile(options.file)
    if options.command == "sql":
        return commands.sql(options, settings)
    if options.command == "check":
        return commands.check(options, settings)
    if options.command == "repair":
        return commands.repair(settings)
    if options.command == "gc":
        return commands.free(options.delete, settings, activations=options.activations)
    if options.command == "report":
        return commands.report(settings)
    if options.command == "neurons":
        return commands.export_neurons(options.folder, settings)
    from flows import services

    if options.command in ("up", "deploy", "checkpoints"):
        check_prefect_home()
    if options.command == "runs":
        return services.runs(settings, options.limit, options.format)
    if options.command == "checkpoints":
        return services.watch(settings, options.profile, options.seconds)
    if options.command == "up":
        return services.up(settings, port=options.port, watched=options.watch)
    if options.command == "deploy":
        return services.deploy(settings)
    return services.down(settings)


if __name__ == "__main__":
    entry_point()
