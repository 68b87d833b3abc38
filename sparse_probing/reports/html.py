"""The HTML report: one file that holds everything it shows and loads nothing.

Here the snapshot's answers are arranged into sections; geometry is in `charts` and `checkpoints`, markup and style in
`templates/`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from sparse_probing import __version__
from sparse_probing.errors import ArtifactError
from sparse_probing.reports import charts, checkpoints, tables
from sparse_probing.reports.charts import Chart, HeatMap, curve_label, number
from sparse_probing.reports.files import replace_text
from sparse_probing.reports.tables import interval, q_value, score
from sparse_probing.warehouse import connect, reads
from sparse_probing.warehouse.reads import BestNeuron, Check, ProbedFeature, Run

TEMPLATES = Path(__file__).parent / "templates"
_N_COLOURS = 6
_BASELINE_STYLES = {"shuffled labels": "b0", "random rotation": "b1", "token identity": "b2", "prevalence": "b3"}
# A feature, what its test scores rest on, and each baseline's test score with its interval.
BaselineRow = tuple[str, str, tuple[tuple[str, str], ...]]
_BASELINE_ORDER = ("dense", "random_rotation", "token_identity", "shuffled_labels", "prevalence")


@dataclass(frozen=True)
class Legend:
    """A curve's name and its colour class."""

    label: str
    style: str


@dataclass(frozen=True)
class Section:
    """Everything about one run: one model revision on one collection."""

    anchor: str
    run: Run
    neurons: tuple[BestNeuron, ...]
    heat_maps: tuple[HeatMap, ...]
    charts: tuple[Chart, ...]
    legend: tuple[Legend, ...]
    baseline_names: tuple[str, ...]
    baselines: tuple[BaselineRow, ...]
    checks: tuple[Check, ...]
    provenance: tuple[tuple[str, str], ...]

    @property
    def n_errors(self) -> int:
        """Failed checks of severity error."""
        return sum(not check.passed and check.severity == "error" for check in self.checks)

    @property
    def n_warnings(self) -> int:
        """Failed checks of severity warning."""
        return sum(not check.passed and check.severity != "error" for check in self.checks)


def write_report(snapshot: Path, target: Path) -> Path:
    """Write the report on everything in a snapshot as one self-contained page.

    Parameters
    ----------
    snapshot:
        A published snapshot.
    target:
        The HTML file; replaced atomically if there is one.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        If there is no snapshot.
    ArtifactError
        If the file cannot be written.
    """
    connection = connect(snapshot)
    try:
        runs = reads.runs(connection)
        neurons = reads.best_neurons(connection)
        checks = reads.checks(connection)
        features = reads.probed_features(connection)
        profiles = reads.layer_heatmap(connection)
        curves = reads.sparsity_curves(connection)
        baselines = reads.baselines(connection)
        trajectories = reads.checkpoint_trajectories(connection)
        followed = reads.checkpoint_neurons(connection)
    finally:
        connection.close()
    sections = [
        _section(position, run, neurons, features, checks, profiles, curves, baselines)
        for position, run in enumerate(runs)
    ]
    series = checkpoints.all_series(
        trajectories, followed, {(row.run_id, row.feature): tested_on(row) for row in features}
    )
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            sections=sections,
            neurons=neurons,
            anchors={section.run.run_id: section.anchor for section in sections},
            series=series[: checkpoints.MAX_SERIES],
            n_more_series=max(0, len(series) - checkpoints.MAX_SERIES),
            most_followed=checkpoints.MAX_FOLLOWED,
            trajectories=_trajectory_rows(trajectories),
            models=sorted({f"{run.model}@{run.revision}" for run in runs}),
            collections=sorted({run.collection for run in runs}),
            n_errors=sum(section.n_errors for section in sections),
            n_warnings=sum(section.n_warnings for section in sections),
            n_checks=len(checks),
            shades=range(charts.N_SHADES + 1),
            version=__version__,
            written_at=datetime.now(UTC),
            style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
        )
    )
    return _write(target, page)


def _section(
    position: int,
    run: Run,
    neurons: Sequence[BestNeuron],
    probed: Sequence[ProbedFeature],
    checks: Sequence[Check],
    profiles: pd.DataFrame,
    curves: pd.DataFrame,
    baselines: pd.DataFrame,
) -> Section:
    mine = tuple(row for row in neurons if row.run_id == run.run_id)
    tested = {row.feature: tested_on(row) for row in probed if row.run_id == run.run_id}
    my_profiles = profiles[profiles["run_id"] == run.run_id]
    my_curves = curves[(curves["run_id"] == run.run_id) & (curves["step"] == 0) & ~curves["is_dense"]]
    my_curves = my_curves[my_curves["variant"].isin(["real", "shuffled_labels", "random_rotation"])]
    my_baselines = baselines[baselines["run_id"] == run.run_id]
    features = list(dict.fromkeys([row.feature for row in mine] + sorted(my_curves["feature"].unique())))
    styles = _styles(my_curves)
    names, rows = _baseline_rows(my_baselines, features, tested)
    return Section(
        anchor=f"run-{position + 1}",
        run=run,
        neurons=mine,
        heat_maps=charts.heat_maps(my_profiles, [row.feature for row in mine], tested),
        charts=tuple(charts.sparsity_charts(my_curves, features, styles, tested)),
        legend=tuple(Legend(label, style) for label, style in styles.items()),
        baseline_names=names,
        baselines=rows,
        checks=tuple(check for check in checks if check.run_id == run.run_id),
        provenance=_provenance(run),
    )


def tested_on(feature: ProbedFeature) -> str:
    """What a feature's test scores rest on, in words."""
    if feature.task == "regression":
        return f"{feature.n_test} rows of {feature.n_test_groups} groups"
    return (
        f"{feature.n_test} rows ({feature.n_test_positive} positive) of {feature.n_test_groups} groups "
        f"({feature.n_test_groups_positive} with positives)"
    )


def _styles(curves: pd.DataFrame) -> dict[str, str]:
    """A colour class for every curve: methods in order of appearance, baselines always the same."""
    labels = Counter(curve_label(row) for row in curves.to_dict("records"))
    methods = [label for label in labels if label not in _BASELINE_STYLES]
    styles = {label: f"c{position % _N_COLOURS}" for position, label in enumerate(methods)}
    return styles | {label: style for label, style in _BASELINE_STYLES.items() if label in labels}


def _baseline_rows(
    baselines: pd.DataFrame, features: Sequence[str], tested: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[BaselineRow, ...]]:
    present = set(baselines["variant"])
    variants = [name for name in ("real", *_BASELINE_ORDER) if name in present]
    if len(variants) < 2:
        return (), ()
    by_place = {(row["feature"], row["variant"]): row for row in baselines.to_dict("records")}
    rows = []
    for feature in features:
        cells: list[tuple[str, str]] = []
        known = False
        for variant in variants:
            row = by_place.get((feature, variant))
            value, low, high = (None, None, None) if row is None else charts.judged(row, "test")
            bounds = "" if low is None or high is None else f"[{score(low)}, {score(high)}]"
            cells.append((score(value), bounds))
            known = known or row is not None
        if known:
            rows.append((feature, tested.get(feature, ""), tuple(cells)))
    titles = {"real": "best sparse probe", "dense": "dense probe"}
    return tuple(titles.get(name, name.replace("_", " ")) for name in variants), tuple(rows)


def _provenance(run: Run) -> tuple[tuple[str, str], ...]:
    try:
        versions = ", ".join(f"{name} {text}" for name, text in json.loads(run.package_versions).items())
    except (ValueError, AttributeError):
        versions = run.package_versions
    error = "not quantised"
    if run.max_quantisation_error is not None and run.quantisation_error_bound is not None:
        error = f"{run.max_quantisation_error:.4g} (bound {run.quantisation_error_bound:.4g})"
    return (
        ("run", run.run_id),
        ("study", run.study),
        ("model weights", run.weights_digest),
        ("tokenizer", run.tokenizer_digest),
        ("dataset", run.dataset_digest),
        ("activations", run.activations_digest),
        ("probing", run.probing_digest),
        ("hook, pooling", f"{run.hook}, {run.pooling}"),
        ("layers × neurons", f"{len(run.layers)} × {run.n_neurons:,}"),
        ("rows, sequences, tokens", f"{run.n_rows:,}, {run.n_sequences:,}, {run.n_tokens:,}"),
        ("stored as, computed in", f"{run.storage_dtype}, {run.model_dtype} ({run.attention} attention)"),
        ("largest quantisation error", error),
        ("largest clipped share", f"{run.max_clipped_fraction:.3g}"),
        ("split, seed", f"{run.split_mode}, {run.seed}"),
        ("packages", versions),
        ("created", f"{run.created_at:%Y-%m-%d %H:%M} UTC"),
    )


def _trajectory_rows(trajectories: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for row in trajectories.to_dict("records"):
        test = interval(number(row["test_mcc"]), number(row["test_mcc_low"]), number(row["test_mcc_high"]))
        responds = tables.direction_word(int(row["direction"]))
        rows.append({**row, "test": test, "responds": responds, "validation": score(number(row["validation_mcc"]))})
    return rows


def _breakable(name: str) -> Markup:
    """A name that may break after its separators."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[_/@])", name))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": score, "q_value": q_value, "direction": tables.direction_word}
    environment.filters |= {"activation": tables.activation, "breakable": _breakable}
    environment.globals |= {"interval": interval}
    return environment


def _write(target: Path, page: str) -> Path:
    try:
        replace_text(target, page)
    except OSError as error:
        raise ArtifactError(f"Cannot write {target}: {error}.", remedy="Choose another file.") from error
    return target
