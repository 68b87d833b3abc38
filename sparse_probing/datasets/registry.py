"""The feature collections by name. A new collection is a module and a line here."""

from __future__ import annotations

from typing import Any

from sparse_probing.datasets.affixes import Prefixes, Suffixes
from sparse_probing.datasets.collection import Collection
from sparse_probing.datasets.compound_words import CompoundWords
from sparse_probing.datasets.labelled_text import LabelledText
from sparse_probing.datasets.natural_lang_id import NaturalLanguage
from sparse_probing.datasets.position import Position
from sparse_probing.datasets.programming_lang_id import ProgrammingLanguage
from sparse_probing.datasets.text_features import TextFeatures
from sparse_probing.errors import InputError
from sparse_probing.mistakes import choices

COLLECTIONS: dict[str, Collection[Any]] = {
    collection.name: collection
    for collection in (
        NaturalLanguage(),
        ProgrammingLanguage(),
        TextFeatures(),
        Prefixes(),
        Suffixes(),
        Position(),
        CompoundWords(),
        LabelledText(),
    )
}


def collection_names() -> list[str]:
    """Names of all collections, sorted."""
    return sorted(COLLECTIONS)


def get_collection(name: str) -> Collection[Any]:
    """The collection of that name.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in COLLECTIONS:
        raise InputError(
            f"Collection {name!r} is unknown; {choices(name, collection_names())}.",
            remedy="Name one of them; `sparse-probing collections` says what each is.",
        )
    return COLLECTIONS[name]
