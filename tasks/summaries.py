"""What a study comes to, as Markdown for Prefect's page: best neurons, failed checks, time and bytes by stage, places.

Numbers are asked of the published database by whoever calls; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.progress import artifact_key

if TYPE_CHECKING:
    from sparse_probing.warehouse.reads import ArtifactCost, BestNeuron, BestTargetProbe, Check

# More rows than this nobody reads on a page; the artifact with all of them is named.
MOST_ROWS = 40
STAGES = {"dataset": "datasets", "activations": "extraction", "run": "probing"}


@dataclass(frozen=True)
class Summary:
    """A published study.

    Attributes
    ----------
    neurons, targets:
        The best neuron of each feature that has classes, the best probe of each that has targets; best first.
    failed:
        Checks that failed, errors first.
    costs:
        Bytes and seconds of what the runs were made from.
    places:
        Where report, database and data lie, by name.
    """

    study: str
    neurons: Sequence[BestNeuron]
    targets: Sequence[BestTargetProbe]
    failed: Sequence[Check]
    costs: Sequence[ArtifactCost]
    places: Mapping[str, str]


def markdown(summary: Summary) -> str:
    """The summary's text."""
    sections = [[f"# Study {_cell(summary.study)}"], _features(summary), _targets(summary), _checks(summary)]
    sections += [_costs(summary.costs), ["## Where it lies", "", *_table(("what", "where"), summary.places.items())]]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _features(summary: Summary) -> list[str]:
    from sparse_probing.reports import tables

    if not summary.neurons:
        return []
    # A model, revision, collection or hook that all share is said once.
    varying = [
        name
        for name in ("model", "revision", "collection", "hook")
        if len({getattr(row, name) for row in summary.neurons}) > 1
    ]
    header = ("feature", *varying, "neuron", "direction", "test MCC, 95 % interval", "q")
    rows = [
        (
            row.feature,
            *(getattr(row, name) for name in varying),
            f"layer {row.layer}, neuron {row.neuron}",
            tables.direction_word(row.direction),
            tables.interval(row.test_mcc, row.test_mcc_low, row.test_mcc_high),
            tables.q_value(row.q_value, row.p_value_is_bound),
        )
        for row in summary.neurons
    ]
    where = f"features: artifact {artifact_key('best-neurons', summary.study)}, and view best_neuron_per_feature"
    more = _more(len(rows), where)
    return [f"{len(rows)} features probed.", "", *_table(header, rows[:MOST_ROWS]), *more]


def _targets(summary: Summary) -> list[str]:
    from sparse_probing.reports import tables

    if not summary.targets:
        return []
    header = ("feature with targets", "model", "method", "k", "layer", "test R², 95 % interval")
    rows = [
        (
            row.feature,
            row.model,
            row.method,
            row.k,
            "all" if row.layer is None else row.layer,
            tables.interval(row.test_r2, row.test_r2_low, row.test_r2_high),
        )
        for row in summary.targets
    ]
    return [*_table(header, rows[:MOST_ROWS]), *_more(len(rows), "features: view best_target_probes")]


def _checks(summary: Summary) -> list[str]:
    if not summary.failed:
        return ["## Checks", "", "All passed."]
    rows = [(one.name, one.severity, one.run_id, one.violations, one.detail or "") for one in summary.failed]
    header = ("failed check", "severity", "run", "violations", "found first")
    more = _more(len(rows), f"failed: artifact {artifact_key('validation-checks', summary.study)}")
    return ["## Checks", "", *_table(header, rows[:MOST_ROWS]), *more]


def _costs(costs: Sequence[ArtifactCost]) -> list[str]:
    rows = []
    for one in costs:
        seconds = "not known" if one.seconds is None else f"{one.seconds:,.1f}"
        if one.seconds is not None and one.n_timed < one.n_artifacts:
            seconds += f" (of {one.n_timed})"
        rows.append(
            (STAGES[one.kind], one.n_artifacts, seconds, "not known" if one.bytes is None else f"{one.bytes:,}")
        )
    return [
        "## Time and bytes",
        "",
        "Of everything that the study consists of, whichever study made it; of work done side by side, the sum.",
        "",
        *_table(("stage", "artifacts", "seconds", "bytes"), rows),
    ]


def _more(n_rows: int, where: str) -> list[str]:
    return [] if n_rows <= MOST_ROWS else ["", f"and {n_rows - MOST_ROWS} more {where}"]


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines]


def _cell(value: object) -> str:
    """A value that ends no cell, line or table and is no HTML."""
    text = " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
