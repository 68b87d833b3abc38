"""Every 1xx and 2xx view on rows with a known answer."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from sparse_probing.probes.metrics import classification_metrics
from sparse_probing.probes.single import score_neurons
from tests.sql.rows import database
from tests.unit.probes.conftest import plant

RUN: list[dict[str, Any]] = [{}]
FEATURE: list[dict[str, Any]] = [{}]


def score(layer: int, neuron: int, validation: float, test: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"layer": layer, "neuron": neuron, "validation_mcc": validation, "test_mcc": test, **more}


def fit(fit_id: str, k: int, validation: float | None, test: float | None = None, **more: Any) -> dict[str, Any]:
    scores = {
        "train_mcc": validation,
        "validation_mcc": validation,
        "test_mcc": test if test is not None else validation,
    }
    return {"fit_id": fit_id, "k": k, **scores, **more}


def test_probed_features_joins_run_and_feature() -> None:
    con = database(runs=RUN, features=[{"prevalence": 0.25}, {"feature": "capital"}])
    found = con.execute("select model, feature, prevalence from probed_features order by feature").fetchall()
    assert found == [("tiny", "capital", 0.2), ("tiny", "digit", 0.25)]


def test_shortlisted_neurons_leaves_others_out_and_nan_becomes_null() -> None:
    con = database(
        neuron_scores=[score(0, 0, 0.5), score(0, 1, 0.9, shortlisted=False), score(0, 2, math.nan, test=math.nan)]
    )
    found = con.execute("select neuron, validation_mcc, test_mcc from shortlisted_neurons order by neuron").fetchall()
    assert found == [(0, 0.5, 0.5), (2, None, None)]


def test_scored_fits_takes_the_metric_of_the_task() -> None:
    con = database(
        features=[{}, {"feature": "abs_pos", "task": "regression"}],
        probe_fits=[
            fit("a", 1, 0.5, validation_r2=None, test_mcc_low=0.25, test_mcc_high=0.75),
            fit("b", 1, math.nan, feature="abs_pos", validation_r2=0.25, test_r2=0.125, test_mcc_low=0.0),
            fit("c", 9, 0.5, variant="dense", method="dense_probe"),
            fit("d", 1, math.nan, variant="random_rotation", method="rotation_baseline"),
            fit("e", 9, 0.5, variant="shuffled_labels", method="dense_probe"),
        ],
    )
    found = con.execute(
        "select fit_id, metric, validation_mcc, validation_r2, test_mcc, test_r2, test_mcc_low, is_dense, is_rotated "
        "from scored_fits order by fit_id"
    ).fetchall()
    assert found == [
        ("a", "mcc", 0.5, None, 0.5, None, 0.25, False, False),
        ("b", "r2", None, 0.25, None, 0.125, None, False, False),
        ("c", "mcc", 0.5, None, 0.5, None, None, True, False),
        ("d", "mcc", None, None, None, None, None, False, True),
        ("e", "mcc", 0.5, None, 0.5, None, None, False, False),
    ]


def test_rankings_are_ordered_by_validation_and_never_by_test() -> None:
    con = database(
        runs=RUN,
        features=FEATURE,
        neuron_scores=[
            score(0, 0, 0.6, test=0.1),
            score(0, 1, 0.5, test=0.99),
            score(1, 0, 0.9, test=0.9, shortlisted=False),
            score(1, 1, math.nan, test=1.0),
        ],
    )
    found = con.execute("select layer, neuron, rank, selection_metric from neuron_rankings order by rank").fetchall()
    assert found == [
        (0, 0, 1, "validation_mcc"),
        (0, 1, 2, "validation_mcc"),
        (1, 1, 3, "validation_mcc"),
    ]


def compared(neuron: str, low: float, best: str = "1/2") -> dict[str, Any]:
    return {"probe_id": best, "other_probe_id": neuron, "difference_low": low, "difference_high": low + 0.5}


def test_equals_are_ordered_by_train_then_roc_then_place_and_ties_are_not_told_apart_on_test() -> None:
    con = database(
        runs=RUN,
        features=FEATURE,
        # Only those with the neuron that ranks first count; a limit of 0 leaves it open which one is better.
        comparisons=[
            compared("0/1", -0.25),
            compared("1/0", 0.0),
            compared("0/0", 0.125),
            compared("1/1", -1, best="0/1"),
        ],
        neuron_scores=[
            score(1, 1, 0.75, train_mcc=0.5, train_roc_auc=0.5),
            score(1, 0, 0.75, train_mcc=0.5, train_roc_auc=0.5),
            score(0, 1, 0.75, train_mcc=0.5, train_roc_auc=0.625),
            score(1, 2, 0.75, train_mcc=0.625, test=-1.0),
            score(0, 0, 0.5, test=1.0),
        ],
    )
    found = con.execute("select layer, neuron, ties, difference_low from neuron_rankings order by rank").fetchall()
    assert found == [(1, 2, 3, None), (0, 1, 3, -0.25), (1, 0, 3, 0.0), (1, 1, 3, None), (0, 0, 3, 0.125)]


def test_features_and_runs_are_ranked_apart() -> None:
    con = database(
        runs=[{}, {"run_id": "r2", "revision": "step2"}],
        features=[{}, {"feature": "capital"}, {"run_id": "r2"}],
        neuron_scores=[score(0, 0, 0.25), score(0, 1, 0.5, feature="capital"), score(0, 2, 0.75, run_id="r2")],
    )
    found = con.execute(
        "select run_id, revision, feature, neuron, validation_mcc, prevalence from best_neuron_per_feature "
        "order by run_id, feature"
    ).fetchall()
    assert found == [
        ("r1", "main", "capital", 1, 0.5, 0.2),
        ("r1", "main", "digit", 0, 0.25, 0.2),
        ("r2", "step2", "digit", 2, 0.75, 0.2),
    ]


def test_best_neuron_comes_with_its_test_interval_and_q() -> None:
    con = database(
        runs=RUN,
        features=FEATURE,
        neuron_scores=[score(1, 7, 0.75, 0.625, test_mcc_low=0.5, test_mcc_high=0.75, p_value=0.125, q_value=0.25)],
    )
    found = con.execute(
        "select layer, neuron, validation_mcc_low, test_mcc, test_mcc_low, test_mcc_high, p_value, q_value, "
        "n_test_positive from best_neuron_per_feature"
    ).fetchall()
    assert found == [(1, 7, 0.0, 0.625, 0.5, 0.75, 0.125, 0.25, 40)]


def test_neurons_of_interest_reach_all_thresholds_of_their_collection() -> None:
    con = database(
        runs=[{}, {"run_id": "r2", "collection": "unlisted"}],
        features=[{}, {"run_id": "r2"}],
        neuron_scores=[
            score(0, 0, 0.85, test=0.1, validation_f1=0.5),
            score(0, 1, 0.84, test=1.0, validation_f1=1.0),
            score(0, 2, 0.95, validation_f1=0.9),
            score(0, 0, 0.89, run_id="r2"),
            score(0, 1, 0.90, run_id="r2"),
        ],
    )
    read = "select run_id, neuron from neurons_of_interest order by run_id, neuron"
    assert con.execute(read).fetchall() == [("r1", 0), ("r1", 2), ("r2", 1)]
    con.execute("insert into interest_thresholds values ('text_features', 'validation_f1', 0.9)")
    assert con.execute(read).fetchall() == [("r1", 2), ("r2", 1)]
    con.execute("delete from interest_thresholds where collection = '*'")
    assert con.execute(read).fetchall() == [("r1", 2)]


def test_layer_profiles_hold_the_best_neuron_of_every_layer() -> None:
    con = database(
        runs=RUN,
        features=FEATURE,
        neuron_scores=[score(0, 0, 0.5), score(0, 1, 0.25), score(1, 0, 0.5, train_mcc=0.75), score(1, 1, 0.625)],
    )
    found = con.execute(
        "select layer, neuron, rank, is_best_layer, validation_mcc from layer_profiles order by layer"
    ).fetchall()
    assert found == [(0, 0, 3, False, 0.5), (1, 1, 1, True, 0.625)]


def test_sparsity_curves_take_the_layer_that_validation_chose() -> None:
    con = database(
        runs=RUN,
        features=FEATURE,
        probe_fits=[
            fit("a", 1, 0.5, 0.25, layer=0, test_mcc_low=0.125, test_mcc_high=0.5),
            fit("b", 1, 0.25, 0.75, layer=1),
            fit("c", 2, 0.5, 0.625, layer=0),
            fit("d", 2, 0.75, 0.5, layer=1),
            fit("e", 1, 0.125, 0.0, layer=1, variant="shuffled_labels"),
            fit("f", 2, 0.875, 0.875, layer=1, variant="dense", method="dense_probe"),
            fit("g", 2, None, None, layer=1, status="failed"),
        ],
    )
    found = con.execute(
        "select variant, k, layer, n_layers, test_mcc, test_mcc_low, dense_test_mcc from sparsity_curves "
        "order by variant desc, k"
    ).fetchall()
    assert found == [
        ("shuffled_labels", 1, 1, 1, 0.0, None, 0.875),
        ("real", 1, 0, 2, 0.25, 0.125, 0.875),
        ("real", 2, 1, 3, 0.5, None, 0.875),
        ("dense", 2, 1, 1, 0.875, None, 0.875),
    ]


def test_steps_and_rankings_are_curves_of_their_own() -> None:
    con = database(
        runs=RUN,
        features=FEATURE,
        probe_fits=[
            fit("a", 1, 0.5, ranking="mean_dif"),
            fit("b", 1, 0.75, ranking="f_stat"),
            fit("c", 1, 0.25, step=1),
        ],
    )
    found = con.execute("select ranking, step, validation_mcc from sparsity_curves order by 3").fetchall()
    assert found == [(None, 1, 0.25), ("mean_dif", 0, 0.5), ("f_stat", 0, 0.75)]


def test_baselines_have_one_row_per_variant() -> None:
    con = database(
        runs=RUN,
        features=FEATURE,
        probe_fits=[
            fit("a", 1, 0.5, 0.75),
            fit("b", 2, 0.75, 0.5),
            fit("c", 1, 0.25, variant="random_rotation"),
            fit("d", 0, 0.0, layer=None, method="prevalence", variant="prevalence"),
            fit("e", 2, 0.875, method="dense_probe"),
        ],
    )
    found = con.execute("select variant, k, test_mcc from baselines order by variant").fetchall()
    assert found == [("dense", 2, 0.875), ("prevalence", 0, 0.0), ("random_rotation", 1, 0.25), ("real", 2, 0.5)]


def test_best_target_probes_are_chosen_on_validation_r2() -> None:
    def regression(fit_id: str, k: int, validation: float, test: float, **changes: object) -> dict[str, object]:
        scores = {
            "validation_r2": validation,
            "test_r2": test,
            "test_r2_low": test - 0.125,
            "test_r2_high": test + 0.125,
        }
        return fit(fit_id, k, 0.0, feature="position") | {"validation_mcc": None, "test_mcc": None} | scores | changes

    con = database(
        runs=RUN,
        features=[{}, {"feature": "position", "task": "regression"}],
        probe_fits=[
            fit("a", 1, 0.9),
            regression("b", 1, 0.25, 0.875),
            regression("c", 4, 0.5, 0.375),
            regression("d", 8, 0.75, 0.625, variant="dense"),
            regression("e", 1, 0.875, 0.875, variant="shuffled_labels"),
        ],
    )
    found = con.execute(
        "select feature, hook, k, validation_r2, test_r2, test_r2_low, test_r2_high, dense_test_r2 from best_target_probes"
    ).fetchall()
    assert found == [("position", "mlp.hook_post", 4, 0.5, 0.375, 0.25, 0.5, 0.625)]


def test_feature_sparsity_is_the_smallest_k_near_the_dense_probe() -> None:
    con = database(
        runs=RUN,
        features=[{}, {"feature": "capital"}, {"feature": "chance"}],
        probe_fits=[
            fit("a", 1, 0.70),
            fit("b", 2, 0.76, 0.74),
            fit("c", 4, 0.90),
            fit("d", 8, 0.8, variant="dense"),
            fit("e", 1, 0.10, feature="capital"),
            fit("f", 8, 0.8, feature="capital", variant="dense"),
            fit("g", 1, 0.10, feature="chance"),
            fit("h", 8, -0.1, feature="chance", variant="dense"),
        ],
    )
    found = con.execute(
        "select feature, smallest_k, test_mcc, largest_k_tried, dense_validation_mcc from feature_sparsity "
        "order by feature"
    ).fetchall()
    assert found == [("capital", None, None, 1, 0.8), ("chance", None, None, 1, -0.1), ("digit", 2, 0.74, 4, 0.8)]


def test_polysemantic_neurons_answer_to_two_features() -> None:
    con = database(
        runs=[{}, {"run_id": "r2", "collection": "ewt"}, {"run_id": "r3"}, {"run_id": "r4", "revision": "step2"}],
        features=[
            {},
            {"feature": "capital"},
            {"run_id": "r2", "feature": "noun"},
            {"run_id": "r3"},
            {"run_id": "r4", "feature": "other"},
        ],
        neuron_scores=[
            score(0, 0, 0.5),
            score(0, 0, 0.75, feature="noun", run_id="r2"),
            score(0, 0, 0.25, feature="capital"),
            # the same feature in another run, and another revision of the model, do not count
            score(0, 1, 0.75),
            score(0, 1, 0.875, run_id="r3"),
            score(0, 1, 0.875, feature="other", run_id="r4"),
        ],
    )
    found = con.execute(
        "select layer, neuron, n_features, features, validation_mccs from polysemantic_neurons"
    ).fetchall()
    assert found == [(0, 0, 2, ["ewt.noun", "text_features.digit"], [0.75, 0.5])]


def test_method_agreement_counts_shared_neurons() -> None:
    def support(fit_id: str, *neurons: int) -> list[dict[str, Any]]:
        return [{"fit_id": fit_id, "neuron": n, "position_in_support": i} for i, n in enumerate(neurons)]

    con = database(
        runs=RUN,
        features=FEATURE,
        probe_fits=[
            fit("a", 2, 0.5, method="heuristic"),
            fit("b", 2, 0.5, method="optimal"),
            fit("c", 2, 0.5, method="other"),
            fit("d", 3, 0.5, method="third"),
            fit("e", 2, 0.5, method="rotation_baseline"),
        ],
        probe_supports=[
            *support("a", 1, 2),
            *support("b", 2, 3),
            *support("c", 8, 9),
            *support("d", 1, 2, 3),
            *support("e", 1, 2),
        ],
    )
    found = con.execute(
        "select method_a, method_b, n_shared, n_union, jaccard from method_agreement order by method_a, method_b"
    ).fetchall()
    assert found == [
        ("heuristic", "optimal", 1, 3, pytest.approx(1 / 3)),
        ("heuristic", "other", 0, 4, 0.0),
        ("optimal", "other", 0, 4, 0.0),
    ]


def test_optimal_certificates_are_the_fits_with_a_bound() -> None:
    con = database(
        runs=RUN,
        features=FEATURE,
        probe_fits=[
            fit("a", 2, 0.5, method="optimal", status="optimal", objective=1.0, bound=1.0, gap=0.0, n_cuts=7)
            | {"audited_by": "gurobi 13.0.3", "audit_gap": 1e-7},
            fit("b", 4, 0.5, method="optimal", status="time_limit", objective=1.0, bound=0.5, gap=0.5),
            fit("c", 2, 0.5),
        ],
    )
    found = con.execute(
        "select k, certified, gap, n_cuts, audited_by, audit_gap from optimal_certificates order by k"
    ).fetchall()
    assert found == [(2, True, 0.0, 7, "gurobi 13.0.3", 1e-7), (4, False, 0.5, None, None, None)]


def test_views_of_fits_tell_how_many_neurons_were_searched() -> None:
    claim = {"n_neurons": 1536, "ridge": 40.0, "unit_standard_deviations": 10.0}
    proof = {"method": "optimal", "status": "optimal", "objective": 1.0, "bound": 1.0, "gap": 0.0}
    con = database(
        runs=RUN,
        features=FEATURE,
        probe_fits=[
            fit("a", 2, 0.75, n_candidates=50, ranking="mean_dif", **claim, **proof),
            fit("b", 2, 0.875, n_candidates=1536, **claim, **proof),
            fit("c", 4, 0.9375, n_candidates=1536, **claim, **proof),
            fit("d", 2, 0.5, n_candidates=99),
            fit("e", 8, 0.90, variant="dense", n_candidates=1536),
        ],
        probe_supports=[{"fit_id": fit_id, "neuron": n, "position_in_support": n} for fit_id in "abd" for n in (0, 1)],
    )
    assert con.execute(
        "select n_candidates, n_neurons, ridge, unit_standard_deviations from optimal_certificates order by all"
    ).fetchall() == [(50, 1536, 40.0, 10.0), (1536, 1536, 40.0, 10.0), (1536, 1536, 40.0, 10.0)]
    curves = "select k, ranking, n_candidates from sparsity_curves where method = 'optimal' order by all"
    assert con.execute(curves).fetchall() == [(2, "mean_dif", 50), (2, None, 1536), (4, None, 1536)]
    pairs = "select n_candidates_a, n_candidates_b from method_agreement order by all"
    assert con.execute(pairs).fetchall() == [(99, 50), (99, 1536), (1536, 50)]
    # The filtered search never comes near the dense probe; its row tells what it searched all the same.
    sparse = "select smallest_k, n_candidates from feature_sparsity where method = 'optimal' order by n_candidates"
    assert con.execute(sparse).fetchall() == [(None, 50), (2, 1536)]
    best = "select k, n_candidates from baselines where variant = 'real'"
    assert con.execute(best).fetchall() == [(4, 1536)]


def test_validation_checks_has_a_row_per_run_and_check() -> None:
    con = database(
        runs=RUN,
        check_results=[
            {"n_violations": 3, "passed": False, "detail": "first"},
            {"check_name": "check_q_values", "run_id": "gone"},
        ],
    )
    found = con.execute(
        "select run_id, model, name, severity, violations, passed, detail from validation_checks order by run_id"
    ).fetchall()
    assert found == [
        ("gone", None, "check_q_values", "error", 0, True, None),
        ("r1", "tiny", "check_row_counts", "error", 3, False, "first"),
    ]


def test_the_best_neuron_says_its_threshold_its_direction_and_what_it_was_tested_on() -> None:
    con = database(
        runs=RUN,
        features=[{"feature": name} for name in ("rises", "falls", "says_nothing")],
        neuron_scores=[
            score(0, 0, 0.5, feature="rises", coef=2.0, intercept=-3.0, best_threshold=9.0),
            score(0, 1, 0.5, feature="falls", coef=-0.5, intercept=1.0, best_direction=1),
            score(0, 1, 0.0, feature="says_nothing", coef=0.0, intercept=0.0),
        ],
    )
    tested = "n_test, n_test_positive, n_test_negative, n_test_groups, n_test_groups_positive"
    for view in ("best_neuron_per_feature", "neuron_rankings"):
        found = con.execute(f"select feature, threshold, direction, {tested} from {view} order by feature").fetchall()
        assert found == [
            ("falls", 2.0, -1, 200, 40, 160, 20, 15),
            ("rises", 1.5, 1, 200, 40, 160, 20, 15),
            ("says_nothing", None, 0, 200, 40, 160, 20, 15),
        ]


def test_the_threshold_gives_the_reported_scores() -> None:
    """Arrays through `score_neurons` and its table to the view, and the view's threshold back on the arrays."""
    planted = plant()
    scores = score_neurons(planted.X, planted.y, planted.groups, **planted.keywords)
    rows = [row | {"layer": 0} for row in scores.table().to_pylist()]
    con = database(runs=RUN, features=FEATURE, neuron_scores=rows)
    found = con.execute(
        "select neuron, threshold, direction, test_mcc from neuron_rankings where neuron <> 7"
    ).fetchall()
    assert {(neuron, direction) for neuron, _, direction, _ in found} >= {(3, 1), (11, -1), (20, 1)}
    test = planted.split == 2
    for neuron, threshold, direction, test_mcc in found:
        signed = direction * (planted.values[test, neuron] - threshold)
        assert classification_metrics(planted.y[test], signed)["mcc"] == pytest.approx(test_mcc, abs=1e-6)


def models(**changes: Any) -> list[dict[str, Any]]:
    """Two models in folders of the same name, each in two collections."""
    rows = []
    for folder in ("a", "b"):
        spec = json.dumps({"model": {"id": f"runs/{folder}/final"}})
        for collection in ("text_features", "ewt"):
            run = {"run_id": f"{folder}-{collection}", "collection": collection, "model": "final", "revision": "local"}
            run["dataset_digest"] = collection
            rows.append(run | {"spec": spec, "weights_digest": f"weights of {folder}"} | changes)
    return rows


def test_models_of_one_name_are_never_one_model() -> None:
    runs = models()
    con = database(
        runs=runs,
        features=[{"run_id": run["run_id"]} for run in runs],
        neuron_scores=[score(0, 0, 0.75, run_id=run["run_id"]) for run in runs if run["run_id"] != "b-ewt"]
        + [score(0, 1, 0.75, run_id="b-ewt")],
    )
    names = con.execute("select distinct model, model_id, revision from named_runs order by model").fetchall()
    assert names == [("a/final", "runs/a/final", "local"), ("b/final", "runs/b/final", "local")]
    found = con.execute("select model, revision, layer, neuron, n_features from polysemantic_neurons").fetchall()
    assert found == [("a/final", "local", 0, 0, 2)]
    assert con.execute("select count(*) from checkpoint_trajectories").fetchall() == [(0,)]
    assert con.execute("select count(*) from checkpoint_changes").fetchall() == [(0,)]


def test_a_folder_that_was_overwritten_holds_two_revisions_of_one_model() -> None:
    runs: list[dict[str, Any]] = [
        {"run_id": "r1", "revision": "local", "weights_digest": "0123456789ab"},
        {"run_id": "r2", "revision": "local", "weights_digest": "fedcba987654", "collection": "ewt"},
    ]
    con = database(
        runs=runs,
        features=[{"run_id": run["run_id"]} for run in runs],
        neuron_scores=[score(0, 0, 0.75, run_id=run["run_id"]) for run in runs],
    )
    found = con.execute("select model, revision from named_runs order by revision").fetchall()
    assert found == [("tiny", "local+01234567"), ("tiny", "local+fedcba98")]
    assert con.execute("select count(*) from polysemantic_neurons").fetchall() == [(0,)]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (("x", "m/x"), ("x", "n/x"), ["m/x", "n/x"]),
        (("x", "x"), ("x", "n/x"), ["n/x", "x"]),
        (("x", "a/b/x"), ("x", "c/b/x/"), ["a/b/x", "c/b/x"]),
        (("x", "/a/x"), ("x", "a/x"), ["/a/x", "a/x"]),
        (("mine", "a/final"), ("mine", "b/final"), ["mine (a/final)", "mine (b/final)"]),
        (("mine", "a/final"), ("yours", "b/final"), ["mine", "yours"]),
        (("x", "a/x"), ("x", "a/x"), ["x", "x"]),
        (("x", None), ("x", None), ["x", "x"]),
    ],
)
def test_names_are_as_short_as_they_may_be(
    first: tuple[str, str | None], second: tuple[str, str | None], names: list[str]
) -> None:
    runs = [
        {"run_id": f"r{i}", "model": name, "spec": json.dumps({"model": {"id": model_id}} if model_id else {})}
        for i, (name, model_id) in enumerate((first, second))
    ]
    found = database(runs=runs).execute("select model from named_runs order by model").fetchall()
    assert [name for (name,) in found] == names


def test_neuron_lists_name_the_dataset_and_take_the_newest_of_like_runs() -> None:
    spec = json.dumps({"collection": {"context_length": 256}, "model": {"id": "tiny"}})
    older = datetime(2025, 1, 1, tzinfo=UTC)
    con = database(
        runs=[
            {"spec": spec},
            {"run_id": "old", "spec": spec, "created_at": older},
            {"run_id": "mean", "pooling": "mean"},
        ],
        features=[{}, {"run_id": "old"}, {"run_id": "mean"}],
        neuron_scores=[
            score(0, 3, 0.95, test=0.9, coef=-1.5, test_f1=0.75),
            score(1, 4, 0.5),
            score(0, 5, 0.99, run_id="old"),
            score(0, 6, 0.1, run_id="mean"),
        ],
    )
    found = con.execute(
        "select list, run_id, layer, neuron, test_mcc, test_f1, coef from neuron_lists order by list, run_id, rank"
    ).fetchall()
    assert [row[:4] for row in found] == [
        ("all_neurons_of_interest", "r1", 0, 3),
        ("top_mono_neurons", "mean", 0, 6),
        ("top_mono_neurons", "r1", 0, 3),
    ]
    assert found[0][4:] == pytest.approx((0.9, 0.75, -1.5))
    ((dataset,),) = con.execute("select distinct dataset from neuron_lists where run_id = 'r1'").fetchall()
    assert dataset.split(".")[0] == "text_features"
    assert dataset.split(".")[2:] == ["256", "50"]
