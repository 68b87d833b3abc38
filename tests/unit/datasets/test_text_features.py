"""The eleven token features by hand, one string at a time."""

from __future__ import annotations

import pytest

from sparse_probing.datasets.text_features import RULES, TextFeatures

NAMES = [rule.__name__ for rule in RULES]
# Token as decoded: the features that hold. Every other feature does not.
KNOWN = {
    " ": {"contains_whitespace", "has_leading_space", "contains_all_whitespace", "is_not_alphanumeric"},
    "\n\n": {"contains_whitespace", "contains_all_whitespace", "is_not_alphanumeric"},
    "\t": {"contains_whitespace", "contains_all_whitespace", "is_not_alphanumeric"},
    "\u00a0": {"contains_whitespace", "contains_all_whitespace", "is_not_alphanumeric", "is_not_ascii"},
    # The letter itself, not the mark that byte-level vocabularies write for a space.
    "Ġ": {"contains_capital", "leading_capital", "all_capitals", "is_not_ascii"},
    " the": {"contains_whitespace", "has_leading_space"},
    "ing": {"no_leading_space_and_loweralpha"},
    "é": {"no_leading_space_and_loweralpha", "is_not_ascii"},
    " The": {"contains_whitespace", "has_leading_space", "contains_capital", "leading_capital"},
    "iPhone": {"contains_capital"},
    " NATO": {"contains_whitespace", "has_leading_space", "contains_capital", "leading_capital", "all_capitals"},
    "A": {"contains_capital", "leading_capital", "all_capitals"},
    "A1": {"contains_capital", "leading_capital", "contains_digit"},
    "U.": {"contains_capital", "leading_capital"},
    "7": {"contains_digit", "all_digits"},
    " 2024": {"contains_whitespace", "has_leading_space", "contains_digit", "all_digits"},
    "1,": {"contains_digit"},
    "٣٤": {"contains_digit", "all_digits", "is_not_ascii"},
    "²": {"contains_digit", "all_digits", "is_not_ascii"},
    "½": {"is_not_ascii"},
    "中": {"is_not_ascii"},
    "Ω": {"contains_capital", "leading_capital", "all_capitals", "is_not_ascii"},
    "—": {"is_not_alphanumeric", "is_not_ascii"},
    "_": {"is_not_alphanumeric"},
    ");\n": {"is_not_alphanumeric", "contains_whitespace"},
    " a b": {"contains_whitespace", "has_leading_space"},
    "don't": set(),
}


@pytest.mark.parametrize("token", KNOWN, ids=ascii)
def test_known_answers(token: str) -> None:
    found = {name for name, rule in TextFeatures().rules().items() if rule(token)}
    assert found == KNOWN[token]


@pytest.mark.parametrize("piece", ["\ufffd", " \ufffd", "a\ufffd"])
def test_a_piece_of_a_character_is_only_known_not_to_be_ascii(piece: str) -> None:
    answers = {name: rule(piece) for name, rule in TextFeatures().rules().items()}
    assert answers.pop("is_not_ascii") is True
    assert set(answers.values()) == {None}


def test_an_empty_token_has_no_label_but_is_ascii() -> None:
    answers = {name: rule("") for name, rule in TextFeatures().rules().items()}
    assert answers.pop("is_not_ascii") is False
    assert set(answers.values()) == {None}


def test_every_feature_is_positive_and_negative_somewhere_above() -> None:
    for name in NAMES:
        assert 0 < sum(name in holds for holds in KNOWN.values()) < len(KNOWN), name
    assert len(NAMES) == 11
