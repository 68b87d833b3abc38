"""One method on some features and layers: other runs of the same datasets and activations, with the same numbers."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import pytest
from prefect.exceptions import ParameterTypeError

from flows.checkpoints import scan_checkpoints
from flows.probing import Method
from flows.starting import ShippedProfile, as_parameter
from flows.study import FLOWS
from flows.study import study as study_flow
from sparse_probing import run_study
from sparse_probing.config import (
    CollectionSpec,
    ExtractionSpec,
    ModelSpec,
    ProbingSpec,
    StudySpec,
    digest,
    profile_names,
)
from sparse_probing.errors import DataError, InputError
from sparse_probing.planning import narrowed, plan_study
from sparse_probing.probes import METHODS
from sparse_probing.settings import Settings, load_settings
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse import connect


@pytest.fixture(scope="module")
def study(tiny_model: Path) -> StudySpec:
    return StudySpec(
        name="whole",
        models=(ModelSpec(id=str(tiny_model), name="tiny", dtype="float32"),),
        collections=(
            CollectionSpec(collection="natural_lang_id", context_length=48, options={"sequences_per_class": 24}),
            CollectionSpec(
                collection="text_features", context_length=64, options={"sequences_per_class": 30, "max_rows": 900}
            ),
        ),
        extraction=ExtractionSpec(shard_tokens=1024),
        probing=ProbingSpec(k_values=(1, 2), n_bootstrap=20, n_permutations=10),
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, study: StudySpec) -> Settings:
    """A data folder in which the whole study is finished."""
    data = tmp_path_factory.mktemp("whole") / "data"
    run_study(study, data=data, say=lambda line: None)
    return load_settings(data)


def test_one_method_on_some_features_and_layers(study: StudySpec, settings: Settings) -> None:
    root = Location.open(settings.data_uri)
    plan = plan_study(study, settings, root)
    assert plan.is_finished
    less = narrowed(plan, root, method="dense_probe", features=["french", "greek"], layers=[2, 1])
    assert [one.collection for one in less.collections] == ["natural_lang_id"]
    assert (less.probing.methods, less.probing.best_layer_methods) == (("dense_probe",), ())
    # Nothing is extracted anew: the datasets and activations are those of the whole study.
    planned = plan_study(less, settings, root)
    assert all(pair.is_extracted for pair in planned.pairs)
    assert not planned.is_finished
    (run_id,) = run_study(less, data=settings.data_uri, say=lambda line: None)
    assert run_id not in plan.run_ids
    with connect(settings.snapshot_path) as results:
        scored = results.execute(
            "select distinct feature, layer from neuron_scores where run_id = ? order by all", [run_id]
        ).fetchall()
        fits = results.execute(
            "select distinct feature, layer, method from probe_fits where run_id = ? and variant = 'real' order by all",
            [run_id],
        ).fetchall()
        failed = results.execute(
            "select check_name from check_results where run_id = ? and not passed and severity = 'error'", [run_id]
        ).fetchall()
        # The same neurons have the same scores as in the whole study, to the last bit.
        differing = results.execute(
            "select count(*), count(*) filter (where one.test_mcc is distinct from other.test_mcc) from neuron_scores as one "
            "inner join neuron_scores as other using (feature, layer, neuron) where one.run_id = ? and other.run_id = ?",
            [run_id, plan.run_ids[0]],
        ).fetchall()
        (spec,) = results.execute("select spec from runs where run_id = ?", [run_id]).fetchall()[0]
    pairs = [(feature, layer) for feature in ("french", "greek") for layer in (1, 2)]
    assert scored == pairs
    assert {(feature, layer) for feature, layer, method in fits if method == "dense_probe"} == set(pairs)
    assert failed == []
    assert differing == [(2 * 2 * 64, 0)]
    assert json.loads(spec)["probing"]["features"] == ["french", "greek"]
    # The whole study is as it was.
    assert plan_study(study, settings, root).is_finished


def test_what_is_not_there_is_refused_with_what_was_meant(study: StudySpec, settings: Settings, tmp_path: Path) -> None:
    root = Location.open(settings.data_uri)
    plan = plan_study(study, settings, root)
    with pytest.raises(InputError, match="did you mean french"):
        narrowed(plan, root, features=["frensh"])
    with pytest.raises(InputError, match="did you mean dense_probe"):
        narrowed(plan, root, method="dense_prob")
    with pytest.raises(InputError, match="none of the features is"):
        narrowed(plan, root, method="dense_regression_probe")
    layer = narrowed(plan, root, layers=[7])
    with pytest.raises(InputError, match="Layer 7 is to be probed"):
        run_study(layer, data=settings.data_uri, say=lambda line: None)
    elsewhere = study.model_copy(
        update={"probing": ProbingSpec(features=("no_such",), n_bootstrap=20, n_permutations=10)}
    )
    with pytest.raises(DataError, match="none of the features no_such"):
        run_study(elsewhere, data=settings.data_uri, say=lambda line: None)
    empty = plan_study(study, load_settings(tmp_path))
    with pytest.raises(InputError, match="sparse-probing extract"):
        narrowed(empty, Location.open(tmp_path), method="dense_probe")


def test_runs_of_all_features_and_layers_keep_their_digests() -> None:
    assert "features" not in ProbingSpec().model_dump(mode="json")
    assert digest(ProbingSpec()) == digest(ProbingSpec(features=None, layers=None))
    assert digest(ProbingSpec(layers=(0, 1))) == digest(ProbingSpec(layers=(1, 0))) != digest(ProbingSpec())
    assert ProbingSpec.model_validate(ProbingSpec(features=("b", "a")).model_dump()).features == ("a", "b")


def test_the_deployment_offers_every_method() -> None:
    assert typing.get_args(Method) == tuple(METHODS)


def test_deployments_offer_the_profiles_that_come_with_the_package() -> None:
    assert list(typing.get_args(ShippedProfile)) == profile_names()
    offered = [flow.parameters.model_dump()["properties"]["profile"] for flow in (*FLOWS.values(), scan_checkpoints)]
    for schema in offered:
        names, path = schema["anyOf"]
        assert names["enum"] == profile_names()
        assert path["pattern"]
    given = [as_parameter(profile) for profile in ("demo", "mine.toml", "/a/mine.toml", "~/mine", "./demo", "mine")]
    assert given == ["demo", "mine.toml", "/a/mine.toml", "~/mine", "./demo", "./mine"]
    assert [study_flow.validate_parameters({"profile": one})["profile"] for one in given] == given
    for wrong in ("dmeo", "demo.tml", ""):
        with pytest.raises(ParameterTypeError, match="profile"):
            study_flow.validate_parameters({"profile": wrong})
