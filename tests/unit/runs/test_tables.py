"""Result tables name the model's neurons, whatever column they were stored in, and layers may differ in size."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest

from sparse_probing.config import ProbingSpec
from sparse_probing.runs.inputs import ProbingInputs, audited_certificates, shared_inputs
from sparse_probing.runs.tables import best_layer_tables, layer_tables
from sparse_probing.store.labels import LabelMatrix
from sparse_probing.store.matrices import LayerMatrix

PROBING = ProbingSpec(
    methods=("heuristic_sparsity_sweep", "rotation_baseline_dxd"),
    best_layer_methods=("dense_probe", "optimal_sparse_probing"),
    k_values=(1, 2, 4),
    n_bootstrap=10,
    n_permutations=10,
    optimal_time_limit_seconds=2.0,
)
N_ROWS = 300
CLAIM = ("n_candidates", "n_neurons", "ridge", "unit_standard_deviations")


def labels() -> LabelMatrix:
    rng = np.random.default_rng(0)
    return LabelMatrix(
        features=("feature",),
        levels=("token",),
        labels=rng.choice(np.array([-1, 1], np.int8), (N_ROWS, 1)),
        regression_features=(),
        regression_levels=(),
        targets=np.empty((N_ROWS, 0)),
        split=np.repeat(np.array([0, 1, 2], np.int8), N_ROWS // 3),
        groups=np.arange(N_ROWS) // 2,
        token_ids=rng.integers(0, 9, N_ROWS),
    )


def matrix(neurons: list[int], found: LabelMatrix) -> LayerMatrix:
    rng = np.random.default_rng(len(neurons))
    codes = rng.integers(0, 200, (N_ROWS, len(neurons))).astype(np.uint8)
    # The last column is the best by far.
    codes[:, -1] = rng.integers(0, 100, N_ROWS) + 100 * (found.labels[:, 0] > 0)
    n = len(neurons)
    return LayerMatrix(2, np.array(neurons, np.int32), codes, np.zeros(n, np.float32), np.ones(n, np.float32))


def inputs(found: LabelMatrix, *sizes: int) -> ProbingInputs:
    return shared_inputs("run", PROBING, found, sizes)


@pytest.mark.parametrize("neurons", [[31], [5, 40], [2, 3, 47], [0, 7, 9, 11, 30, 1000]])
def test_tables_carry_the_model_s_numbers(neurons: list[int]) -> None:
    found = labels()
    layer = matrix(neurons, found)
    shared = inputs(found, 3, len(neurons), 6)
    tables = layer_tables(shared, layer)
    scores = tables["neuron_scores"].to_pandas()
    assert scores["neuron"].tolist() == neurons
    assert scores.loc[scores["layer_rank"] == 1, "neuron"].tolist() == [neurons[-1]]
    for part in (tables, best_layer_tables(shared, layer, ["feature"])):
        fits = part["probe_fits"].to_pandas().merge(part["probe_supports"].to_pandas(), on=["run_id", "fit_id"])
        real = fits[fits["variant"] != "random_rotation"]
        assert set(real["neuron"]) <= set(neurons)
        firsts = real[(real["k"] == 1) & (real["variant"] == "real")]
        assert len(firsts) > 0
        assert set(firsts["neuron"]) == {neurons[-1]}
    turned = tables["probe_fits"].to_pandas().query("variant == 'random_rotation'")
    assert len(turned) > 0
    directions = tables["probe_supports"].to_pandas().merge(turned[["fit_id"]], on="fit_id")["neuron"]
    assert directions.max() < len(neurons)


def test_a_run_of_one_width_has_the_basis_it_always_had() -> None:
    from sparse_probing.probes.experiments import baselines
    from sparse_probing.probes.uncertainty import permutations

    found = labels()
    generator = np.random.default_rng(PROBING.seed)
    permutations.permute_labels(found.labels, found.groups, split=found.split, n_permutations=10, rng=generator)
    wanted = baselines.random_rotation(6, generator)
    rotations = inputs(found, 6, 6, 6).rotations
    assert list(rotations) == [6]
    np.testing.assert_array_equal(rotations[6], wanted)


def test_the_spec_says_how_many_neurons_an_exact_search_has() -> None:
    found = labels()
    layer = matrix([0, 7, 9, 11, 30, 1000], found)
    seen = {}
    for n_candidates in (None, 4):
        probing = PROBING.model_copy(update={"optimal_candidates": n_candidates})
        fits = best_layer_tables(shared_inputs("run", probing, found, [6]), layer, ["feature"])["probe_fits"]
        exact = fits.filter(pc.equal(fits.column("method"), "optimal_sparse_probing"))
        seen[n_candidates] = set(zip(*(exact.column(name).to_pylist() for name in CLAIM), strict=True))
    assert seen == {None: {(6, 6, 10.0, 10.0)}, 4: {(4, 6, 10.0, 10.0)}}


EVERYWHERE = PROBING.model_copy(update={"methods": ("optimal_sparse_probing",), "best_layer_methods": ("osp_tuning",)})


@pytest.mark.parametrize("asked", [0, 1, 7, 36, 1000, "all"])
def test_as_many_certificates_are_audited_as_the_spec_says(asked: int | str) -> None:
    features = ("a", "b", "c")
    probing = EVERYWHERE.model_copy(update={"audited_certificates": asked})
    chosen = audited_certificates(probing, features, [0, 4, 5])
    # Three features and sizes, on three layers and the best one.
    assert len(chosen) == (36 if asked == "all" else min(int(asked), 36))
    assert chosen == audited_certificates(probing, features[::-1], [5, 0, 4])
    if asked == 7:
        assert chosen < audited_certificates(
            EVERYWHERE.model_copy(update={"audited_certificates": 8}), features, [0, 4, 5]
        )
        other = probing.model_copy(update={"seed": 1})
        assert chosen != audited_certificates(other, features, [0, 4, 5])
    assert audited_certificates(PROBING, features, [0]) == audited_certificates(PROBING, features, [])


def test_audits_of_a_layer_are_those_of_the_sample_and_come_out_the_same() -> None:
    found = labels()
    layer = matrix([0, 7, 9, 11, 30, 1000], found)
    for asked in (0, 3, "all"):
        probing = EVERYWHERE.model_copy(update={"audited_certificates": asked})
        shared = shared_inputs("run", probing, found, [6, 6], [layer.layer, 8])
        tables = [
            [layer_tables(shared, layer)["probe_fits"], best_layer_tables(shared, layer, ["feature"])["probe_fits"]]
            for _ in range(2)
        ]
        assert [part.drop(["fit_seconds"]) for part in tables[0]] == [part.drop(["fit_seconds"]) for part in tables[1]]
        audited = {
            ("feature", layer.layer if place == 0 else None, row["method"], row["k"])
            for place, part in enumerate(tables[0])
            for row in part.to_pylist()
            if row["audited_by"] is not None
        }
        assert audited == {one for one in shared.audited if one[1] != 8}
        for row in tables[0][1].to_pylist():
            assert row["audit_gap"] is None or -1e-6 < row["audit_gap"] < row["gap"] + 1e-6
