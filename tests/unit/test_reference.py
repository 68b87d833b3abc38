"""The reference pages name what there is: every public name of the package, and nothing that is gone."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import sparse_probing

ROOT = Path(__file__).parents[2]
ENTRY = re.compile(r"^::: (\S+)\.(\w+)$", re.MULTILINE)
ENTRIES = [
    (page.name, *entry)
    for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
    for entry in ENTRY.findall(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("name", sparse_probing.__all__)
def test_every_public_name_has_an_entry(name: str) -> None:
    places = [(module, page) for page, module, entry in ENTRIES if entry == name]
    assert places, f"add {name} to docs/reference/index.md"
    module, page = places[0]
    assert page == "index.md"
    assert getattr(importlib.import_module(module), name) is getattr(sparse_probing, name)


def test_every_entry_is_there_and_has_a_docstring() -> None:
    assert len(ENTRIES) == len({entry[1:] for entry in ENTRIES}) > 60
    for page, module, name in ENTRIES:
        found = getattr(importlib.import_module(module), name, None)
        assert found is not None, f"{page}: {module}.{name}"
        assert found.__doc__, f"{page}: {module}.{name}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    for page in [*docs.glob("*.md"), *docs.glob("reference/*.md")]:
        assert f": {page.relative_to(docs).as_posix()}\n" in navigation, page
