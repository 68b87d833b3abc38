"""Result tables name the model's neurons, whatever column they were stored in, and layers may differ in size."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest

from sparse_probing.config import ProbingSpec
from sparse_probing.store.labels import LabelMatrix
from sparse_probing.store.matrices import LayerMatrix
from tasks.layers import ProbingInputs, best_layer_tables, layer_tables, shared_inputs

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
    from sparse_probing.probes import baselines, uncertainty

    found = labels()
    generator = np.random.default_rng(PROBING.seed)
    uncertainty.permute_labels(found.labels, found.groups, split=found.split, n_permutations=10, rng=generator)
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
