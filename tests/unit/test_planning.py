"""The plan of a study: the names and digests that its artifacts will have, and what state each is in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from sparse_probing import config, planning
from sparse_probing.activations import extract_dataset
from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec, ProbingSpec, StudySpec
from sparse_probing.datasets.build import build_dataset
from sparse_probing.errors import CheckFailure
from sparse_probing.models.loading import load_tokenizer, resolve_model
from sparse_probing.planning import StudyPlan, plan_study
from sparse_probing.runs import stages
from sparse_probing.runs.comparing import intervals
from sparse_probing.runs.planned import PlannedRun, plan_run
from sparse_probing.settings import Settings
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from sparse_probing.warehouse import checks, comparing, loading

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> StudySpec:
    return StudySpec(
        name="planned",
        models=(ModelSpec(id=str(tiny_model), name="tiny", dtype="float32"),),
        collections=(
            CollectionSpec(collection="natural_lang_id", context_length=48, options={"sequences_per_class": 24}),
        ),
        extraction=ExtractionSpec(shard_tokens=1024),
        probing=ProbingSpec(k_values=(1, 2), n_bootstrap=20, n_permutations=10),
    )


def settings_of(folder: Path) -> Settings:
    folder.mkdir()
    return Settings(data_uri=str(folder), local_dir=folder, device="cpu")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, spec: StudySpec) -> Settings:
    """A data folder in which the study is finished."""
    settings = settings_of(tmp_path_factory.mktemp("planned") / "data")
    root = Location.open(settings.data_uri)
    extract(spec, settings, root)
    run = planned_run(spec, plan_study(spec, settings), root)
    finish(root, run)
    publish(settings, root, [run.run_id])
    return settings


def extract(spec: StudySpec, settings: Settings, root: Location) -> tuple[Location, Location]:
    resolved = resolve_model(spec.models[0], models_dir=settings.models_dir)
    tokenizer, digest = load_tokenizer(resolved), resolved.tokenizer_digest
    dataset = build_dataset(spec.collections[0], root=root, tokenizer=tokenizer, tokenizer_digest=digest)
    return dataset, extract_dataset(dataset, resolved, spec.extraction, root=root)


def states(plan: StudyPlan) -> list[tuple[str, str]]:
    return [(one.kind, one.state) for one in plan.artifacts]


def made(plan: StudyPlan, kind: str) -> planning.PlannedArtifact:
    (found,) = [one for one in plan.artifacts if one.kind == kind]
    return found


def test_each_artifact_goes_from_missing_to_finished_under_the_name_that_was_planned(
    spec: StudySpec, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path / "data")
    root = Location.open(settings.data_uri)
    kinds = ("dataset", "activations", "run", "database")

    unknown = plan_study(spec, settings)
    assert states(unknown) == [(kind, "missing") for kind in kinds]
    assert unknown.run_ids == []
    assert "not on this machine" in made(unknown, "run").detail

    resolve_model(spec.models[0], models_dir=settings.models_dir)
    named = plan_study(spec, settings)
    assert states(named) == [(kind, "missing") for kind in kinds]
    assert made(named, "run").inputs == (made(named, "dataset").path, made(named, "activations").path)

    dataset, activations = extract(spec, settings, root)
    assert str(dataset) == str(root / str(made(named, "dataset").path))
    assert str(activations) == str(root / str(made(named, "activations").path))
    assert read_manifest(dataset).digest == made(named, "dataset").digest
    assert read_manifest(activations).digest == made(named, "activations").digest
    extracted = plan_study(spec, settings)
    assert [state for _, state in states(extracted)] == ["finished", "finished", "missing", "missing"]
    assert extracted.pairs[0].is_extracted
    assert not extracted.is_finished

    run = planned_run(spec, named, root)
    assert [run.run_id] == named.run_ids
    stages.probe_layer(root, run, run.layers[0])
    assert (made(plan_study(spec, settings), "run").state, made(plan_study(spec, settings), "run").detail) == (
        "partial",
        "1 layer(s) probed",
    )
    finish(root, run)
    assert [state for _, state in states(plan_study(spec, settings))] == ["finished"] * 3 + ["missing"]

    publish(settings, root, [])
    unchecked = plan_study(spec, settings)
    assert made(unchecked, "database").state == "partial"
    publish(settings, root, [run.run_id])
    whole = plan_study(spec, settings)
    assert whole.is_finished, list(planning.rows(whole))
    assert whole.run_ids == named.run_ids
    assert [one.digest for one in whole.artifacts] == [one.digest for one in named.artifacts]


def planned_run(spec: StudySpec, plan: StudyPlan, root: Location) -> PlannedRun:
    paths = {kind: str(made(plan, kind).path) for kind in ("dataset", "activations")}
    return plan_run(
        root,
        study=spec.name,
        model=spec.models[0],
        collection=spec.collections[0],
        probing=spec.probing,
        say=print,
        **paths,
    )


def finish(root: Location, run: PlannedRun) -> None:
    for layer in run.layers:
        stages.probe_layer(root, run, layer)
    best = [stages.probe_best_layer(root, run, *one) for one in stages.choose_layers(root, run).items()]
    stages.finish_run(root, run, best)


def publish(settings: Settings, root: Location, run_ids: list[str]) -> None:
    loading.load_results(settings.working_path, root)
    comparing.compare(settings.working_path, intervals)
    checks.run_checks(settings.working_path, run_ids, root)
    loading.publish(settings.working_path, settings.snapshot_path)


@pytest.mark.parametrize(
    ("kind", "pattern", "broken"),
    [
        ("dataset", "datasets/*/labels.parquet", "dataset"),
        ("activations", "activations/*/*/rows.parquet", "activations"),
        ("run", "results/neuron_scores/*/part-00000.parquet", "run"),
        ("database", "results.duckdb", "database"),
        ("database", "working.duckdb", "database"),
        ("database", "published.json", "database"),
    ],
)
def test_what_was_written_to_since_is_not_finished(
    kind: str, pattern: str, broken: str, spec: StudySpec, settings: Settings, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(settings.local_dir, data, copy_function=shutil.copy2)
    # What is known of a model is kept by its folder, which is the same.
    copy = Settings(data_uri=str(data), local_dir=data, device="cpu")
    assert plan_study(spec, copy).is_finished
    (path,) = data.glob(pattern)
    path.write_bytes(path.read_bytes()[:-1])
    plan = plan_study(spec, copy)
    assert not plan.is_finished
    assert next(one.kind for one in plan.artifacts if one.state != "finished") == broken
    assert made(plan, kind).state == "partial"


def test_another_spec_has_other_runs_and_shares_what_it_can(spec: StudySpec, settings: Settings) -> None:
    other = spec.model_copy(update={"probing": spec.probing.model_copy(update={"k_values": (1, 3)})})
    plan = plan_study(other, settings)
    assert [state for _, state in states(plan)] == ["finished", "finished", "missing", "partial"]
    assert set(plan.run_ids).isdisjoint(plan_study(spec, settings).run_ids)


def test_an_outdated_view_is_not_finished(spec: StudySpec, settings: Settings, tmp_path: Path, monkeypatch) -> None:
    from sparse_probing.warehouse import catalog

    changed = tmp_path / "sql"
    shutil.copytree(catalog.sql_folder(), changed)
    view = changed / "202_best_neuron_per_feature.sql"
    view.write_text(view.read_text().replace("select", "select distinct", 1))
    monkeypatch.setattr(catalog, "sql_folder", lambda: changed)
    database = made(plan_study(spec, settings), "database")
    assert database.state == "partial"
    assert "another version" in database.detail


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, sparse_probing.planning\n"
        "print({'torch', 'transformers', 'prefect', 'pandas', 'great_expectations', 'sklearn', 'gurobipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


def test_a_finished_study_whose_check_failed_prints_its_rankings_and_fails(
    spec: StudySpec, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from flows import studies

    data = tmp_path / "data"
    shutil.copytree(settings.local_dir, data, copy_function=shutil.copy2)
    copy = Settings(data_uri=str(data), local_dir=data, device="cpu")
    with duckdb.connect(str(copy.working_path)) as connection:
        connection.execute(
            "update check_results set passed = false, severity = 'error', n_violations = 3, detail = 'planted' "
            "where check_name = 'check_duplicate_keys'"
        )
    loading.publish(copy.working_path, copy.snapshot_path)
    plan = plan_study(spec, copy)
    assert plan.is_finished
    assert plan.failed_checks == ("check_duplicate_keys: 3 violation(s), first: planted",)
    monkeypatch.setattr(config, "load_profile", lambda name: spec)
    with pytest.raises(CheckFailure, match="planted"):
        studies.study("planned", copy)
    said = capsys.readouterr().out
    assert said.startswith("Study planned was finished: 1 run(s)")
    assert "Best neuron of each feature" in said
