"""The example series: whole checkpoints that a seed decides, probed as one series of the same neurons."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from examples.train_series import log_spaced, main, new_model, save_whole, train_series
from sparse_probing import StudySpec, load_profile, run_study
from sparse_probing.config import ModelSpec
from sparse_probing.models.checkpoints import list_checkpoints
from sparse_probing.reports.html import write_report
from sparse_probing.scanning import expanded
from sparse_probing.studying import StudyRuns

ROOT = Path(__file__).parents[2]
STEPS = (0, 2, 4)


def train(out: Path, checkpoints: tuple[int, ...], *, steps: int, seed: int = 0) -> Path:
    train_series(out, checkpoints, steps=steps, seed=seed)
    return out


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    return train(tmp_path_factory.mktemp("series") / "series", STEPS, steps=4)


@pytest.fixture(scope="module")
def runs(series: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyRuns:
    languages = {"collection": "natural_lang_id", "context_length": 32}
    languages["options"] = {
        "path": str(series / "held_out" / "languages.csv"),
        "group_column": "group",
        "languages": ["el", "en", "fr"],
        "sequences_per_class": 30,
    }
    spec = StudySpec.model_validate(
        {
            "name": "series",
            "models": [{"id": str(series), "revision": f"step-{step:06d}"} for step in STEPS],
            "probing": {"n_bootstrap": 50, "n_permutations": 50, "k_values": [1], "best_layer_methods": []},
            "collections": [languages],
        }
    )
    return run_study(spec, data=tmp_path_factory.mktemp("data"), say=lambda line: None)


def test_every_checkpoint_is_a_model_and_nothing_else_is_left(series: Path) -> None:
    assert [one.step for one in list_checkpoints(ModelSpec(id=str(series)))] == list(STEPS)
    assert sorted(path.name for path in series.iterdir()) == ["held_out", "step-000000", "step-000002", "step-000004"]
    weights = {(series / f"step-{step:06d}" / "model.safetensors").read_bytes() for step in STEPS}
    assert len(weights) == 3
    tokenizers = {(series / f"step-{step:06d}" / "tokenizer.json").read_bytes() for step in STEPS}
    assert len(tokenizers) == 1


def test_a_step_depends_on_the_seed_and_not_on_how_many_follow(series: Path, tmp_path: Path) -> None:
    again = train(tmp_path / "again", (2,), steps=2)
    first, same = ((folder / "step-000002" / "model.safetensors").read_bytes() for folder in (series, again))
    assert first == same
    tokenizer = AutoTokenizer.from_pretrained(again / "step-000002")
    one, other = (next(new_model(tokenizer, seed).parameters()) for seed in (0, 1))
    assert not one.equal(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1"], "holds step-000000 already; name another folder, or remove it"),
        (["--steps", "4", "--checkpoints", "0,8"], "checkpoint 8 comes after the last of 4 steps; raise --steps"),
        (["--checkpoints", "0,x"], "expected steps from 0, such as 0,1,2,4"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    series: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(series.rglob("*"))
    with pytest.raises(SystemExit) as refused:
        main(["--out", str(series), *options])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(series.rglob("*")) == before


def test_checkpoints_are_spread_over_the_logarithm_of_the_step() -> None:
    assert log_spaced(10) == (0, 1, 2, 4, 8, 10)
    assert log_spaced(512) == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    assert log_spaced(0) == (0,)


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def stop_halfway(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        assert list_checkpoints(ModelSpec(id=str(tmp_path))) == []
        raise InterruptedError

    with pytest.raises(InterruptedError):
        save_whole(tmp_path / "step-000001", stop_halfway)
    assert not (tmp_path / "step-000001").exists()
    save_whole(tmp_path / "step-000001", lambda folder: None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_the_same_neurons_are_at_every_checkpoint(runs: StudyRuns) -> None:
    with runs.connect() as connection:
        best = connection.execute(
            "select feature, list(training_step order by position_in_series) from checkpoint_trajectories "
            "group by series_id, feature order by feature"
        ).fetchall()
        assert best == [(feature, list(STEPS)) for feature in ("english", "french", "greek")]
        followed = connection.execute(
            "select feature, layer, neuron, list(training_step order by position_in_series), count(test_mcc), "
            "count_if(is_best) from checkpoint_neurons group by feature, layer, neuron"
        ).fetchall()
        assert {(tuple(steps), n_scores) for *_, steps, n_scores, _ in followed} == {(STEPS, len(STEPS))}
        assert sum(n_best for *_, n_best in followed) == 3 * len(STEPS)
        # Wherever both shortlists hold the neuron, its change has an interval.
        missing = connection.execute(
            "select count(*) from checkpoint_neurons as later inner join checkpoint_neurons as earlier "
            "using (series_id, feature, layer, neuron) "
            "where later.position_in_series = earlier.position_in_series + 1 and later.rank is not null "
            "and earlier.rank is not null and later.difference_low is null"
        ).fetchall()
        compared = connection.execute(
            "select count(*), count_if(difference_low > difference_high) from checkpoint_neurons "
            "where difference_low is not null"
        ).fetchall()
    assert missing == [(0,)]
    assert compared[0][0] >= 3
    assert compared[0][1] == 0


def test_the_report_draws_the_series(runs: StudyRuns, tmp_path: Path) -> None:
    page = write_report(runs.snapshot, tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'aria-label="Test MCC over training steps for \w+"', page)) == 3


def test_what_is_held_out_is_disjoint_from_the_rest(series: Path, sentences: list[str]) -> None:
    with (series / "held_out" / "languages.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["label"] for row in rows}) == 10
    assert {row["text"] for row in rows} <= set(sentences)
    # A quarter of the sentences of each language.
    assert {label: sum(row["label"] == label for row in rows) for label in ("de", "el", "pl")} == dict.fromkeys(
        ("de", "el", "pl"), 250
    )


def test_the_profile_watches_what_the_program_leaves(series: Path) -> None:
    study = load_profile(str(ROOT / "examples" / "series.toml"))
    assert study.checkpoints is not None
    assert study.checkpoints.folder == str(ROOT / "build" / "series")
    here = study.model_copy(update={"checkpoints": study.checkpoints.model_copy(update={"folder": str(series)})})
    models = expanded(here).models
    assert [model.revision for model in models] == sorted(path.name for path in series.glob("step-*"))
    # One series: they differ in revision and step alone.
    assert {model.model_copy(update={"revision": "any", "training_step": 0}) for model in models} == {
        ModelSpec(id=str(series), name="small-neox", dtype="float32", revision="any", training_step=0)
    }
