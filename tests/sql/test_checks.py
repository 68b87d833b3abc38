"""Every check view: silent on a clean run, and with a planted violation it says where, how grave, what and what else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sparse_probing.warehouse import catalog
from tests.sql.rows import database

Tables = Mapping[str, Sequence[Mapping[str, Any]]]

CLEAN: Tables = {
    "runs": [{}],
    "features": [{}],
    "neuron_scores": [
        {"layer": layer, "neuron": neuron, "shortlisted": neuron == 0} for layer in (0, 1) for neuron in (0, 1)
    ],
    "probe_fits": [
        {"fit_id": "f1", "layer": 0, "k": 2, "train_mcc": 0.5, "validation_mcc": 0.5, "test_mcc": 0.5},
        {"fit_id": "f2", "layer": 1, "k": 1, "validation_mcc": 0.25, "test_mcc": 0.25, "test_mcc_low": 0.125}
        | {"test_mcc_high": 0.375},
        {"fit_id": "telescope", "layer": 1, "k": 4, "method": "telescopic_sparsity_sweep"},
        {"fit_id": "dense", "layer": 1, "k": 2, "method": "dense_probe", "variant": "dense", "test_mcc": 0.75},
        {"fit_id": "rotated", "layer": 1, "k": 1, "variant": "random_rotation", "validation_mcc": 0.0, "test_mcc": 0.0},
        {"fit_id": "prior", "layer": None, "k": 0, "method": "prevalence", "variant": "prevalence", "test_mcc": 0.0},
        {"fit_id": "lost", "layer": 1, "k": 3, "status": "skipped", "converged": False},
    ],
    "probe_supports": [
        {"fit_id": "f1", "neuron": 0},
        {"fit_id": "f1", "neuron": 1, "position_in_support": 1},
        {"fit_id": "f2", "layer": 1, "neuron": 1},
        {"fit_id": "telescope", "layer": 1, "neuron": 1},
        {"fit_id": "rotated", "layer": 1, "neuron": 0},
        {"fit_id": "rotated", "layer": 1, "neuron": 1, "position_in_support": 1},
    ],
}

CHOSEN_NEURONS = '{"extraction": {"hook": "mlp.hook_post", "neurons": [[0, 0], [0, 1], [1, 0]]}}'


def changed(table: str, position: int, **columns: Any) -> Tables:
    """The clean tables with some columns of one row changed."""
    rows = [dict(row) for row in CLEAN[table]]
    rows[position] |= columns
    return {**CLEAN, table: rows}


def added(table: str, **columns: Any) -> Tables:
    """The clean tables with one more row."""
    return {**CLEAN, table: [*CLEAN[table], columns]}


def without(table: str, *positions: int) -> Tables:
    """The clean tables, some rows of one left out."""
    return {**CLEAN, table: [row for i, row in enumerate(CLEAN[table]) if i not in positions]}


# check, tables, and what its one row says: severity, subject, found, expected
PLANTED: list[tuple[str, Tables, tuple[str, str, str, str]]] = [
    ("duplicate_keys", added("runs"), ("error", "runs r1", "2 rows", "1 row")),
    ("duplicate_keys", added("features"), ("error", "features digit", "2 rows", "1 row")),
    (
        "duplicate_keys",
        added("neuron_scores", layer=1, neuron=1),
        ("error", "neuron_scores digit layer 1 neuron 1", "2 rows", "1 row"),
    ),
    ("duplicate_keys", added("probe_fits", fit_id="lost"), ("error", "probe_fits lost", "2 rows", "1 row")),
    (
        "duplicate_keys",
        added("probe_supports", fit_id="f2", layer=1, neuron=1),
        ("error", "probe_supports f2 layer 1 neuron 1", "2 rows", "1 row"),
    ),
    (
        "neuron_score_ranges",
        changed("neuron_scores", 0, test_mcc=1.5),
        (
            "error",
            "digit layer 0 neuron 0",
            "mcc 0.5000 to 1.5000, other scores 0.0100 to 0.5000",
            "mcc in [-1, 1], all other scores in [0, 1], none NaN",
        ),
    ),
    (
        "neuron_score_ranges",
        changed("neuron_scores", 3, validation_roc_auc=math.nan),
        (
            "error",
            "digit layer 1 neuron 1",
            "mcc 0.5000 to 0.5000, other scores 0.0100 to nan",
            "mcc in [-1, 1], all other scores in [0, 1], none NaN",
        ),
    ),
    (
        "fit_score_ranges",
        changed("probe_fits", 1, train_f1=-0.25, test_r2=-7.0),
        (
            "error",
            "digit heuristic_sparsity_sweep k=1 (fit f2)",
            "mcc and kappa 0.25 to 0.25, other scores -0.25 to -0.25",
            "mcc and kappa in [-1, 1], all other scores in [0, 1], r2 at most 1, none NaN",
        ),
    ),
    (
        "fit_score_ranges",
        changed("probe_fits", 0, test_kappa=math.nan),
        (
            "error",
            "digit heuristic_sparsity_sweep k=2 (fit f1)",
            "mcc and kappa 0.5 to nan, other scores none to none",
            "mcc and kappa in [-1, 1], all other scores in [0, 1], r2 at most 1, none NaN",
        ),
    ),
    (
        "missing_layers",
        without("neuron_scores", 2, 3),
        ("error", "digit layer 1", "no results", "a row per neuron in neuron_scores"),
    ),
    (
        "missing_layers",
        {
            **CLEAN,
            "features": [{}, {"feature": "abs_pos", "task": "regression"}],
            "probe_fits": [*CLEAN["probe_fits"], {"fit_id": "p", "feature": "abs_pos", "layer": 0}],
        },
        ("error", "abs_pos layer 1", "no results", "at least one fit in probe_fits"),
    ),
    ("row_counts", without("neuron_scores", 3), ("error", "digit layer 1: neurons", "1", "2")),
    (
        "row_counts",
        changed("runs", 0, spec=CHOSEN_NEURONS),
        ("error", "digit layer 1: neurons", "2", "1"),
    ),
    (
        "row_counts",
        changed("features", 0, n_test_groups=300),
        (
            "error",
            "digit test: rows and groups",
            "200 rows (40 positive) in 300 groups (15 positive)",
            "positives at most all, groups at most rows",
        ),
    ),
    (
        "row_counts",
        changed("runs", 0, n_rows=999),
        ("error", "digit: labelled rows of all splits", "1000", "1 to 999 (stored rows)"),
    ),
    (
        "row_counts",
        changed("features", 0, prevalence=0.5),
        ("error", "digit: prevalence", "0.5000", "0.2000 to 0.2000 (its splits)"),
    ),
    (
        "shared_groups",
        changed("features", 0, n_shared_groups=3),
        ("error", "digit", "3 groups in more than one split", "0"),
    ),
    (
        "shared_groups",
        {**changed("features", 0, n_shared_groups=3), "runs": [{"split_mode": "reference"}]},
        ("warning", "digit", "3 groups in more than one split", "0"),
    ),
    (
        "small_classes",
        changed("features", 0, n_test_positive=9),
        ("warning", "digit test", "9 positive and 191 negative rows", "at least 10 of each"),
    ),
    (
        "small_classes",
        changed("features", 0, n_validation_positive=200),
        ("error", "digit validation", "200 positive and 0 negative rows", "at least 10 of each"),
    ),
    (
        "quantisation",
        changed("runs", 0, max_quantisation_error=0.03),
        ("error", "largest quantisation error", "0.03", "at most 0.02"),
    ),
    (
        "quantisation",
        changed("runs", 0, max_quantisation_error=None),
        ("error", "largest quantisation error", "nothing", "an error and its bound, for uint8"),
    ),
    (
        "quantisation",
        changed("runs", 0, max_clipped_fraction=0.25),
        ("warning", "largest share of a neuron's activations outside its range", "0.25", "at most 0.05"),
    ),
    (
        "support_sizes",
        changed("probe_fits", 0, k=3),
        ("error", "digit heuristic_sparsity_sweep k=3 (fit f1)", "2 neurons in its support", "3"),
    ),
    (
        "support_sizes",
        changed("probe_fits", 2, k=0),
        ("error", "digit telescopic_sparsity_sweep k=0 (fit telescope)", "1 neurons in its support", "0"),
    ),
    (
        "support_sizes",
        without("probe_supports", 2),
        ("error", "digit heuristic_sparsity_sweep k=1 (fit f2)", "0 neurons in its support", "1"),
    ),
    (
        "orphan_rows",
        added("probe_supports", fit_id="nobody"),
        ("error", "probe_supports of nobody without a fit", "1 rows", "none"),
    ),
    (
        "orphan_rows",
        added("probe_fits", fit_id="new", feature="unknown"),
        ("error", "probe_fits of unknown without a row in features", "1 rows", "none"),
    ),
    (
        "orphan_rows",
        {"features": [{}, {"feature": "capital"}]},
        ("error", "features without a run", "2 rows", "none"),
    ),
    (
        "unconverged_fits",
        changed("neuron_scores", 0, converged=False),
        ("warning", "neuron_scores", "1 of 4 fits not converged", "at most 1 %"),
    ),
    (
        "failed_fits",
        changed("probe_fits", 1, status="time_limit", message="gap 0.1"),
        (
            "warning",
            "digit heuristic_sparsity_sweep k=1 layer 1 (fit f2)",
            "time_limit: gap 0.1",
            "optimal or ok",
        ),
    ),
    (
        "intervals",
        changed("neuron_scores", 0, test_mcc_low=0.75, test_mcc_high=0.25),
        ("error", "digit layer 0 neuron 0: test mcc", "0.5 in [0.75, 0.25]", "low < high, low <= score <= high"),
    ),
    (
        "intervals",
        changed("neuron_scores", 0, validation_mcc_high=0.25),
        ("error", "digit layer 0 neuron 0: validation mcc", "0.5 in [0.0, 0.25]", "low < high, low <= score <= high"),
    ),
    (
        "intervals",
        changed("probe_fits", 1, test_mcc_high=None),
        (
            "error",
            "digit heuristic_sparsity_sweep k=1 (fit f2): test mcc",
            "0.25 in [0.125, nothing]",
            "low < high, low <= score <= high",
        ),
    ),
    (
        "missing_intervals",
        changed("neuron_scores", 0, test_mcc_low=None, test_mcc_high=None),
        ("warning", "digit", "1 of 2 shortlisted neurons without an interval", "0"),
    ),
    (
        "q_values",
        changed("neuron_scores", 1, p_value=0.5, q_value=0.25),
        ("error", "digit layer 0 neuron 1", "q = 0.250000 below p = 0.500000, and 0 more", "q >= p"),
    ),
    (
        "shortlists",
        changed("neuron_scores", 2, shortlisted=False),
        ("error", "digit layer 1", "0 of 2 neurons shortlisted", "at least 1"),
    ),
    (
        "too_good",
        changed("neuron_scores", 0, validation_mcc=0.75, test_mcc=1.0),
        (
            "warning",
            "digit layer 0 neuron 0",
            "test mcc 1 with 40 positives (prevalence 0.200)",
            "below 1, or a reason",
        ),
    ),
    (
        "baselines",
        changed("probe_fits", 4, validation_mcc=0.125, test_mcc=0.625),
        (
            "warning",
            "digit: random_rotation",
            "baseline 0.6250, best sparse probe 0.5000 (test mcc), difference in [nothing, nothing]",
            "a difference above 0",
        ),
    ),
    (
        "audits",
        changed("probe_fits", 0, gap=1e-4, audited_by="gurobi 13.0.3", audit_gap=0.25),
        (
            "error",
            "digit heuristic_sparsity_sweep k=2 layer 0 (fit f1)",
            "audit_gap 2.50e-01 by gurobi 13.0.3",
            "from 0 to the gap, 1.00e-04, to 1e-05",
        ),
    ),
    (
        "audits",
        changed("probe_fits", 0, gap=1e-4, audited_by="gurobi 13.0.3", audit_gap=-1e-3),
        (
            "error",
            "digit heuristic_sparsity_sweep k=2 layer 0 (fit f1)",
            "audit_gap -1.00e-03 by gurobi 13.0.3",
            "from 0 to the gap, 1.00e-04, to 1e-05",
        ),
    ),
    (
        "empty_runs",
        {"runs": [{}], "features": [{}]},
        ("error", "the run", "2 layers, 1 features, 0 neuron scores, 0 fits", "layers, features, and scores or fits"),
    ),
]

CHECKS = [view.name for view in catalog.check_views()]


@pytest.mark.parametrize("view", CHECKS)
def test_a_clean_run_violates_nothing(view: str) -> None:
    assert database(**CLEAN).execute(f"select run_id, subject, found from {view}").fetchall() == []


@pytest.mark.parametrize(("check", "tables", "row"), PLANTED, ids=[f"{p[0]}-{i}" for i, p in enumerate(PLANTED)])
def test_a_planted_violation_is_found(check: str, tables: Tables, row: tuple[str, str, str, str]) -> None:
    found = database(**tables).execute(f"select run_id, severity, subject, found, expected from check_{check}")
    assert found.fetchall() == [("r1", *row)]


@pytest.mark.parametrize(
    ("gap", "audit_gap", "n_violations"),
    [
        (1e-4, 1.05e-4, 0),
        (1e-4, 1.2e-4, 1),
        (0.0, 9e-6, 0),
        (0.0, -9e-6, 0),
        (0.0, -1.1e-5, 1),
        (0.0, math.nan, 1),
        (None, 0.0, 1),
        (0.5, None, 0),
    ],
)
def test_an_audit_may_differ_by_the_tolerances_of_two_searches(
    gap: float | None, audit_gap: float | None, n_violations: int
) -> None:
    con = database(**changed("probe_fits", 0, gap=gap, audit_gap=audit_gap, audited_by="gurobi"))
    assert len(con.execute("select run_id from check_audits").fetchall()) == n_violations


def test_every_check_has_a_planted_violation() -> None:
    assert {f"check_{check}" for check, _, _ in PLANTED} == set(CHECKS)
    assert len(CHECKS) >= 10


def test_every_check_says_its_grain_and_why_it_exists() -> None:
    for view in catalog.check_views():
        assert view.severity in ("error", "warning")
        assert view.grain.startswith("one row per ")
        assert len(view.why) > 20


def test_the_reference_split_needs_no_validation_rows() -> None:
    counts = {
        "n_validation": 0,
        "n_validation_positive": 0,
        "n_validation_groups": 0,
        "n_validation_groups_positive": 0,
    }
    tables = {**changed("features", 0, **counts), "runs": [{"split_mode": "reference"}]}
    con = database(**tables)
    assert con.execute("select subject from check_small_classes").fetchall() == []
    assert con.execute("select subject from check_row_counts").fetchall() == []


@pytest.mark.parametrize("neurons", ["null", "[[0, 0], [0, 1], [1, 0]]"])
def test_layers_of_chosen_neurons_have_as_many_scores(neurons: str) -> None:
    spec = f'{{"extraction": {{"neurons": {neurons}}}}}'
    kept = CLEAN if neurons == "null" else without("neuron_scores", 3)
    con = database(**{**kept, "runs": [{"spec": spec}]})
    assert con.execute("select subject from check_row_counts").fetchall() == []
