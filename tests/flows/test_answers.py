"""A mistake is answered before anything heavy is imported, in one line that names the nearest name that exists."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import build_parser

ROOT = Path(__file__).parents[2]
NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
HEAVY = ("torch", "prefect", "transformers", "sklearn", "scipy", "duckdb", "great_expectations", "huggingface_hub")
# Runs each command line in one process: prints its exit code, what it said, and the heavy modules imported by then.
SCRIPT = """
import contextlib, io, json, sys
from flows.cli import main
for arguments in json.loads(sys.argv[1]):
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        code = main(arguments)
    heavy = sorted(set(json.loads(sys.argv[2])) & set(sys.modules))
    print(json.dumps([code, said.getvalue(), heavy]))
"""
PROFILE = """
name = "broken"
{top}
[[models]]
id = "{model}"
{models}
[extraction]
{extraction}
[probing]
{probing}
[[collections]]
collection = "{collection}"
{collections}
[collections.options]
{options}
"""
# What is changed, and what the line must say.
MISTAKES = {
    "top-level key": ({"top": "colections = 1"}, ("no such key; did you mean collections?",)),
    "key of models": ({"models": 'revison = "a"'}, ("models.0.revison", "did you mean revision?")),
    "key of extraction": ({"extraction": "layer = [1]"}, ("did you mean layers?", "storage_dtype")),
    "key of probing": ({"probing": "k_vals = [1]"}, ("probing.k_vals", "did you mean k_values?")),
    "key of collections": ({"collections": "contextlength = 8"}, ("did you mean context_length?",)),
    "option of collections": ({"collections": "max_rows = 8"}, ("[collections.options]",)),
    "key among the options": ({"options": "context_length = 8"}, ("context_length belongs in [[collections]]",)),
    "option": ({"options": "max_row = 8"}, ("did you mean max_rows?",)),
    "value of an option": ({"options": 'rare_features = "leave-out"'}, ("did you mean leave_out?",)),
    "collection": ({"collection": "text_feature"}, ("did you mean text_features?", "position")),
    "feature": ({"collections": 'features = ["All_Digit"]'}, ("did you mean all_digits?", "is_not_ascii")),
    "pooling": ({"collections": 'pooling = "men"'}, ("did you mean mean?",)),
    "language": (
        {"collection": "programming_lang_id", "options": 'languages = ["Python", "html"]'},
        ("'Python' is unknown", "did you mean python?"),
    ),
    "hook": ({"extraction": 'hook = "mlp.hook_pots"'}, ("did you mean mlp.hook_post?", "hook_resid_pre")),
    "one of several hooks": ({"top": 'hooks = ["mlp_pots"]'}, ("did you mean mlp_post?",)),
    "method": ({"probing": 'methods = ["dense_prob"]'}, ("did you mean dense_probe?", "Edit probing.methods")),
    "ranking": ({"probing": 'ranking = "mean_diff"'}, ("probing.ranking", "did you mean mean_dif?", "f_stat")),
    "several at once": ({"probing": 'rankin = "mi"\nsplt = "group"\nseeed = 1'}, ("(and 2 more mistakes)",)),
    "layer": ({"extraction": "layers = [99]"}, ("Layer 99",)),
    "neuron": ({"extraction": "neurons = [[0, 99]]"}, ("Neuron 99 of layer 0",)),
    "file of neurons": ({"extraction": 'neurons = "neuron.csv"'}, ("cannot be read", "did you mean neurons.csv?")),
    "model folder": ({"model": "{here}/modle"}, ("does not exist", "did you mean {here}/model?")),
    "checkpoint still being written": (
        {"model": "{here}/half"},
        (
            "The model in {here}/half is not complete: model.safetensors has 64 bytes; its header describes 70",
            "Wait until",
        ),
    ),
    "collection given twice": (
        {"options": '[[collections]]\ncollection = "text_features"'},
        ("'text_features' is given twice in the same way",),
    ),
    "name longer than a file's": ({"models": f'name = "{"n" * 300}"'}, ("models.0", "300 bytes", "models.name")),
    "share that is no number": ({"collections": "split_fractions = [nan, 0.5, 0.5]"}, ("finite number",)),
    "draws beyond memory": ({"probing": "n_bootstrap = 100_000_000"}, ("probing.n_bootstrap", "10000")),
    "seed below zero": ({"probing": "seed = -1"}, ("probing.seed", "greater than or equal to 0")),
    "package": ({"model": "package:network"}, ("did you mean networkx?",)),
    "path of texts": ({"options": 'path = "{here}/text.csv"'}, ("did you mean {here}/texts.csv?",)),
    "two models of one name": (
        {"models": '[[models]]\nid = "{here}/other/model"'},
        ("are both called 'model'", "models.name"),
    ),
    "one model in two ways": (
        {"models": '[[models]]\nid = "{here}/model"\ndtype = "float16"'},
        ("'model' at revision 'main' is given twice", "models.name"),
    ),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What a model's folder looks like from outside: two layers of 32 neurons."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"num_hidden_layers": 2, "intermediate_size": 32}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(NO_TENSORS)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


def answers(*command_lines: list[str], cwd: Path, heavy: tuple[str, ...] = HEAVY) -> list[tuple[int, str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(command_lines), json.dumps(heavy)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SPARSE_PROBING_DATA": str(cwd / "data")},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_every_kind_of_mistake_is_answered_with_the_nearest_name_and_nothing_heavy(tmp_path: Path, model: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label\na,b\n", encoding="utf-8")
    (tmp_path / "neurons.csv").write_text("layer,neuron\n0,1\n", encoding="utf-8")
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    shutil.copytree(model, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    lines = []
    for number, (changes, _) in enumerate(MISTAKES.values()):
        blank = dict.fromkeys(("top", "models", "extraction", "probing", "collections", "options"), "")
        parts = blank | {"model": str(model), "collection": "text_features"} | changes
        path = tmp_path / f"broken{number}.toml"
        path.write_text(PROFILE.format(**parts).replace("{here}", str(tmp_path)), encoding="utf-8")
        lines.append([("study", "estimate", "extract")[number % 3], "--profile", str(path)])
    for (name, (_, expected)), (code, said, heavy) in zip(
        MISTAKES.items(), answers(*lines, cwd=tmp_path, heavy=(*HEAVY, "pyarrow", "pandas")), strict=True
    ):
        assert code == 2, (name, said)
        assert len(said.strip().splitlines()) == 1, (name, said)
        assert heavy == [], (name, said)
        for text in expected:
            assert text.replace("{here}", str(tmp_path)) in said, (name, said)


def test_columns_that_a_table_lacks(tmp_path: Path, model: Path) -> None:
    (tmp_path / "texts.csv").write_text("body,Text,label\na,b,c\n", encoding="utf-8")
    path = tmp_path / "columns.toml"
    parts = dict.fromkeys(("top", "models", "extraction", "probing", "collections"), "")
    options = f'path = "{tmp_path / "texts.csv"}"'
    path.write_text(PROFILE.format(**parts, model=model, collection="position", options=options), encoding="utf-8")
    ((code, said, heavy),) = answers(["study", "--profile", str(path)], cwd=tmp_path)
    assert (code, heavy) == (2, [])
    assert "has columns body, Text, label; text_column is 'text'; did you mean Text?" in said


def test_profiles_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"', encoding="utf-8")
    (tmp_path / "odd").write_text('nme = "odd"', encoding="utf-8")
    (tmp_path / "demo").write_text("", encoding="utf-8")
    names = ("nosuch.toml", "sub/nosuch.toml", "mien.toml", "dmeo", "mine", "odd", "demo")
    found = answers(*(["study", "--profile", name] for name in names), cwd=tmp_path)
    assert all((code, heavy) == (2, []) and len(said.splitlines()) == 1 for code, said, heavy in found)
    said = dict(zip(names, (said for _, said, _ in found), strict=True))
    assert f"is not there (looked for {tmp_path / 'nosuch.toml'})" in said["nosuch.toml"]
    assert str(tmp_path / "sub" / "nosuch.toml") in said["sub/nosuch.toml"]
    assert "did you mean mine.toml?" in said["mien.toml"]
    assert "did you mean demo?" in said["dmeo"]
    assert "demo, pythia" in said["dmeo"]
    assert "did you mean mine.toml?" in said["mine"]
    assert "Profile odd: nme: no such key; did you mean name?" in said["odd"]
    assert "both a named profile and the file" in said["demo"]


def test_results_that_are_not_there(tmp_path: Path) -> None:
    for code, said, heavy in answers(["sql", "select 1"], ["check"], ["report"], cwd=tmp_path):
        assert (code, heavy) == (2, [])
        assert "No published results" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stdy"], "did you mean study?"),
        (["sql", "select 1", "--format", "josn"], "did you mean json?"),
        (["profile", "nwe"], "did you mean new?"),
        (["study"], "--profile. See: sparse-probing study --help"),
        (["study", "--profil"], "sparse-probing study --help"),
    ],
)
def test_words_that_are_no_command(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert expected in said


def test_bad_words_on_the_command_line(tmp_path: Path) -> None:
    found = answers(["extract", "--profile", "demo", "--shard", "2/2"], cwd=tmp_path)
    assert [(code, heavy) for code, _, heavy in found] == [(2, [])]
