"""Affixes, positions and the user's own classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_probing.config import CollectionSpec
from sparse_probing.datasets.affixes import PREFIXES, SUFFIXES, Prefixes, Suffixes
from sparse_probing.datasets.build import build_dataset, preflight
from sparse_probing.datasets.compound_words import occurrences
from sparse_probing.errors import DataError, InputError
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.parquet import read_table

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (" undo", {"prefix_un"}),
        (" Under", {"prefix_un"}),
        (" underline", {"prefix_un", "prefix_under"}),
        (" un", set()),
        (" una", set()),
        ("undo", set()),
        ("\nundo", set()),
        (" un-do", set()),
        (" irregular", {"prefix_in_im_il_ir"}),
        (" impose", {"prefix_in_im_il_ir"}),
    ],
)
def test_prefixes_by_hand(token: str, expected: set[str]) -> None:
    assert {name for name, rule in Prefixes().rules().items() if rule(token)} == expected


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (" kindness", {"suffix_ness", "suffix_s_es"}),
        ("izing", {"suffix_ing"}),
        ("ing", set()),
        (" Realise", {"suffix_ise_ize"}),
        (" realize", {"suffix_ise_ize"}),
        (" king", set()),
        (" quick,", set()),
    ],
)
def test_suffixes_by_hand(token: str, expected: set[str]) -> None:
    assert {name for name, rule in Suffixes().rules().items() if rule(token)} == expected


def test_there_are_as_many_affixes_as_the_reference_has() -> None:
    assert 30 <= len(PREFIXES) < 40
    assert 20 <= len(SUFFIXES) < 30


@pytest.fixture
def english_path(tmp_path: Path, english: list[str]) -> Path:
    path = tmp_path / "english.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in english), encoding="utf-8")
    return path


def test_a_suffix_counts_only_where_the_word_ends(tmp_path: Path, english_path: Path, english_tokenizer: Any) -> None:
    tokenizer = english_tokenizer
    options = {"path": str(english_path), "sequences_per_class": 70, "max_rows": 4000, "min_positives": 1}
    spec = CollectionSpec(collection="has_suffix", context_length=256, features=("suffix_s_es",), options=options)
    folder = build_dataset(spec, root=Location.open(tmp_path / "d"), tokenizer=tokenizer, tokenizer_digest="t")
    sequences = read_table(folder / "sequences.parquet").to_pandas().set_index("seq_id").tokens
    labels = read_table(folder / "labels.parquet").to_pandas()
    goes_on = 0
    for seq_id, position, label in zip(labels.seq_id, labels.position, labels.label, strict=True):
        here, after = (tokenizer.decode([int(sequences[seq_id][int(position) + step])]) for step in (0, 1))
        word = here.removeprefix(" ")
        spelled = word.isalpha() and word.endswith("s") and len(word) >= 3
        assert (label == 1) == (spelled and not after[:1].isalpha())
        goes_on += spelled and after[:1].isalpha()
    assert (labels.label == 1).any()
    assert goes_on, "some words were meant to go on after the token"


def test_rare_features_are_refused_or_left_out(tmp_path: Path, english_path: Path, english_tokenizer: Any) -> None:
    options = {"path": str(english_path), "sequences_per_class": 70}
    spec = CollectionSpec(collection="has_suffix", context_length=256, options=options)
    root = Location.open(tmp_path / "d")
    with pytest.raises(DataError, match=r"Feature 'suffix_.*positive positions in.*leave_out"):
        build_dataset(spec, root=root, tokenizer=english_tokenizer, tokenizer_digest="t")
    lenient = spec.model_copy(update={"options": {**options, "rare_features": "leave_out"}})
    folder = build_dataset(lenient, root=root, tokenizer=english_tokenizer, tokenizer_digest="t")
    facts = read_manifest(folder).facts
    kept = [feature["name"] for feature in facts["features"]]
    assert set(read_table(folder / "labels.parquet")["feature"].to_pylist()) == set(kept)
    assert sorted([*kept, *facts["features_left_out"]]) == sorted(f"suffix_{name}" for name in SUFFIXES)
    assert "suffix_ed" in kept
    assert "suffix_ish" in facts["features_left_out"]


def test_positions_by_hand(tmp_path: Path, write_corpus: Write, tokenizer: Any) -> None:
    options = {"path": str(write_corpus()), "sequences_per_class": 30, "max_rows": 300}
    spec = CollectionSpec(collection="position", context_length=41, options=options)
    folder = build_dataset(spec, root=Location.open(tmp_path / "d"), tokenizer=tokenizer, tokenizer_digest="t")
    assert {feature["task"] for feature in read_manifest(folder).facts["features"]} == {"regression"}
    sequences = read_table(folder / "sequences.parquet").to_pandas()
    labels = read_table(folder / "labels.parquet").to_pandas().merge(sequences, on="seq_id")
    assert labels.label.isna().all()
    table = labels.pivot(index=["seq_id", "position", "n_tokens"], columns="feature", values="target").reset_index()
    assert len(table) == 300
    assert (table.position >= 1).all(), "BOS is not labelled"
    np.testing.assert_allclose(table.abs_pos, table.position)
    np.testing.assert_allclose(table.norm_abs_pos, table.position / 40)
    np.testing.assert_allclose(table.rel_pos, table.n_tokens - 1 - table.position)
    np.testing.assert_allclose(table.norm_rel_pos, table.position / (table.n_tokens - 1))
    np.testing.assert_allclose(table.log_pos, np.log(1 + table.position))


def test_own_classes(tmp_path: Path, write_corpus: Write, tokenizer: Any) -> None:
    options = {"path": str(write_corpus()), "group_column": "group", "sequences_per_class": 15, "classes": ["el", "fr"]}
    spec = CollectionSpec(collection="labelled_text", context_length=24, options=options)
    folder = build_dataset(spec, root=Location.open(tmp_path / "d"), tokenizer=tokenizer, tokenizer_digest="t")
    labels = read_table(folder / "labels.parquet").to_pandas()
    assert labels.groupby("feature").label.mean().to_dict() == {"el": 0.0, "fr": 0.0}
    with pytest.raises(InputError, match=r"options\.path: Field required"):
        preflight(CollectionSpec(collection="labelled_text", options={"classes": ["el", "fr"]}))


def test_pairs_and_their_words_alone_by_hand() -> None:
    text = "High  school is high. A school; the high-school boy, high\nSchool, schools, thigh, school high"
    found = [(kind, text[end - 6 : end].strip()) for kind, end in occurrences(text, "high school")]
    assert [kind for kind, _ in found] == ["pair", "first", "second", "pair", "second", "first"]
    assert found[0][1] == "school"
    assert found[1][1] == "s high"


def test_compound_words_end_at_the_word(tmp_path: Path, english_tokenizer: Any) -> None:
    generator = np.random.default_rng(1)
    words = ["the", "list", "of", "names", "was", "read", "in", "a", "module", "value", "returns", "object", "class"]
    rows = []
    for number in range(90):
        before, after = (" ".join(generator.choice(words, size=40)) for _ in range(2))
        target = ("high school", "old school", "high value")[number % 3]
        rows.append({"text": f"{before} {target} {after}"})
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"path": str(path), "bigrams": ["high school"], "sequences_per_class": 15}
    spec = CollectionSpec(collection="compound_words", context_length=24, options=options)
    root = Location.open(tmp_path / "d")
    folder = build_dataset(spec, root=root, tokenizer=english_tokenizer, tokenizer_digest="t")
    sequences = read_table(folder / "sequences.parquet").to_pandas().set_index("seq_id")
    labels = read_table(folder / "labels.parquet").to_pandas()
    assert len(labels) == 45
    assert (labels.label == 1).sum() == 15
    for seq_id, position, label in zip(labels.seq_id, labels.position, labels.label, strict=True):
        tokens = sequences.tokens[seq_id]
        assert tokens[0] == 0
        assert position == len(tokens) - 1
        text = english_tokenizer.decode(tokens[1:])
        assert text.endswith(" high school") == (label == 1)
        assert text.endswith((" school", " high"))
    more = spec.model_copy(update={"options": {**options, "bigrams": ["high school", "credit card"]}})
    with pytest.raises(DataError, match="Feature 'credit_card': documents found: pair 0, second 0, first 0; 10"):
        build_dataset(more, root=root, tokenizer=english_tokenizer, tokenizer_digest="t")
    lenient = more.model_copy(update={"options": {**more.options, "rare_features": "leave_out"}})
    folder = build_dataset(lenient, root=root, tokenizer=english_tokenizer, tokenizer_digest="t")
    assert read_manifest(folder).facts["features_left_out"] == ["credit_card"]
