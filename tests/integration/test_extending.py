"""docs/extending.md as a test: its blocks are applied to a copy of the repository, which then has what they add.

A block of the page is applied if the line above it says where: `FILE`, new | at its end | before, after or in place of the
line that begins with `TEXT`. Others are for reading.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
COPIED = ("sparse_probing", "tasks", "flows", "sql", "tests", "examples", "benchmarks", "docs", "pyproject.toml")
BLOCK = re.compile(
    r"^`(?P<file>[^`]+)`, (?P<how>new|at its end|(?:before|after|in place of) the line that begins with (?P<ticks>`+)"
    r"(?P<anchor>.+?)(?P=ticks)):\n\n```\w*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Of each addition, what the copy runs: its own tests, and those that try every collection, check, criterion or column.
TESTS = (
    "tests/unit/datasets/test_doubled_letters.py",
    "tests/unit/probes/test_rising.py",
    "tests/unit/probes/test_methods.py::test_rankings_look_at_train_alone",
    "tests/unit/probes/test_median_dif.py",
    "tests/sql/test_checks.py::test_a_clean_run_violates_nothing",
    "tests/sql/test_checks.py::test_every_check_has_a_planted_violation",
    "tests/sql/test_checks.py::test_every_check_says_its_grain_and_why_it_exists",
    "tests/sql/test_layer_peaks.py",
    "tests/sql/test_names.py::test_every_column_of_every_view_has_a_name_of_the_glossary",
    "tests/sql/test_tables.py::test_tables_are_the_schemas",
    "tests/sql/test_tables.py::test_the_guide_names_every_table_and_view",
    "tests/unit/warehouse/test_loading.py::test_loads_every_finished_fragment_once",
    "tests/unit/neurons/test_similarity.py",
    "tests/unit/models/test_mlp_in.py",
    "tests/unit/test_imports.py::test_library_module_keeps_the_rules",
)
# What the copy says of itself, beside its tests.
ASKED = """
import sparse_probing, sys
from sparse_probing import schemas
from sparse_probing.config import CollectionSpec
from sparse_probing.datasets.registry import get_collection
from sparse_probing.probes import METHODS
from sparse_probing.warehouse import catalog
assert sparse_probing.__file__.startswith(sys.argv[1]), sparse_probing.__file__
print(get_collection("doubled_letters").resolve(CollectionSpec(collection="doubled_letters")).features[0].name)
print(METHODS["rising_sparsity_sweep"].name)
print(*(view.name for view in catalog.check_views() if "drifting" in view.name))
print("neuron_peaks" in schemas.PART_KINDS and "neuron_peaks" in schemas.RESULT_KINDS and "neuron_peaks" in schemas.TABLES)
"""
PLANTED = "tests/sql/test_checks.py"


@dataclass(frozen=True)
class Section:
    """One kind of addition: its title, the files that the page names, and its text."""

    title: str
    files: tuple[str, ...]
    text: str

    @property
    def blocks(self) -> list[re.Match[str]]:
        """The blocks that say where they go."""
        return list(BLOCK.finditer(self.text))


def sections() -> list[Section]:
    """The sections of the page, each with its list of files."""
    found = []
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        named = re.search(r"^Files: ((?:`[^`]+`,?\s+)+)", text, flags=re.MULTILINE)
        assert named is not None, f"{title} names no files"
        found.append(Section(title, tuple(re.findall(r"`([^`]+)`", named[1])), text))
    return found


def apply(block: re.Match[str], root: Path) -> None:
    """Put a block where the page says."""
    path, how, text = root / block["file"], block["how"], block["text"]
    if how == "new":
        assert not path.exists(), f"{block['file']} is there already"
        path.write_text(text, encoding="utf-8")
        return
    before = path.read_text(encoding="utf-8")
    if how == "at its end":
        path.write_text(before.rstrip("\n") + "\n" + text, encoding="utf-8")
        return
    lines = before.splitlines(keepends=True)
    at = [number for number, line in enumerate(lines) if line.strip().startswith(block["anchor"])]
    assert len(at) == 1, f"{block['file']} has {len(at)} lines that begin with {block['anchor']}"
    first = at[0] + how.startswith("after")
    lines[first : at[0] + (not how.startswith("before"))] = [text]
    path.write_text("".join(lines), encoding="utf-8")


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with all additions of the page; what each touches is what the page names."""
    root = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    for section in sections():
        before = contents(root)
        for block in section.blocks:
            apply(block, root)
        after = contents(root)
        touched = {name for name in after if before.get(name) != after[name]}
        assert touched == (set(section.files) if section.blocks else set()), section.title
    return root


def passes(root: Path, *wanted: str) -> None:
    """Have the copy's tests pass, in a folder for temporary files that is not the one of this test."""
    options = ("-q", "-p", "no:cacheprovider", "--color=no", f"--basetemp={root.parent / 'of-the-copy'}")
    done = python(root, "-m", "pytest", *options, *wanted)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_each_addition_touches_five_files_at_most() -> None:
    found = sections()
    titles = ["collection", "method", "criterion", "check", "table", "analysis", "hook", "architecture"]
    for title, section in zip(titles, found, strict=True):
        assert title in section.title
        assert 2 <= len(section.files) <= 5
        for name in section.files:
            new = any(block["file"] == name and block["how"] == "new" for block in section.blocks)
            assert new or (ROOT / name).is_file(), f"{section.title}: {name} is not there"
    assert [section.title for section in found if not section.blocks] == ["An architecture"]


def test_what_the_page_adds_is_there(extended: Path) -> None:
    done = python(extended, "-c", ASKED, str(extended))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "has_doubled_letter",
        "rising_sparsity_sweep",
        "check_drifting_prevalence",
        "True",
    ]


def test_what_the_page_adds_works(extended: Path) -> None:
    passes(extended, *TESTS)
    passes(extended, PLANTED, "-k", "drifting_prevalence")


def test_templates_keep_the_style(extended: Path) -> None:
    ruff = shutil.which("ruff", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if ruff is None:
        pytest.skip("ruff is not installed")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [ruff, *command, "--no-cache", "."], cwd=extended, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_entry_of_a_profile_is_one(extended: Path) -> None:
    (entry,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (collection,) = tomllib.loads(entry)["collections"]
    asked = (
        "import json, sys\n"
        "from sparse_probing.config import CollectionSpec\n"
        "from sparse_probing.datasets.registry import get_collection\n"
        "spec = CollectionSpec.model_validate(json.loads(sys.argv[1]))\n"
        "print(get_collection(spec.collection).resolve(spec).options.max_rows)\n"
    )
    done = python(extended, "-c", asked, json.dumps(collection))
    assert done.stdout.split() == [str(collection["options"]["max_rows"])], done.stderr
