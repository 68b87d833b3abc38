"""Special tokens, truncation, offsets and token strings, on a real tokenizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparse_probing.datasets.tokens import encode, special_tokens, token_strings
from sparse_probing.errors import InputError


def test_bos_of_id_zero_comes_first_and_is_not_probed(tokenizer: Any) -> None:
    assert tokenizer.bos_token_id == 0
    rule = special_tokens(tokenizer)
    assert (rule.name, rule.prefix, rule.suffix) == ("bos", (0,), ())
    (sequence,) = encode(tokenizer, ["abc"], context_length=16)
    assert sequence.tokens[0] == 0
    assert sequence.special.tolist() == [True] + [False] * (len(sequence.tokens) - 1)
    assert (sequence.text_start, sequence.text_end) == (1, len(sequence.tokens))


def test_encoders_are_framed_by_cls_and_sep() -> None:
    ids = {"bos_token_id": None, "cls_token_id": 0, "sep_token_id": 2, "unk_token_id": 3}
    rule = special_tokens(SimpleNamespace(**ids, all_special_ids=[0, 2, 3]))
    assert (rule.name, rule.prefix, rule.suffix) == ("cls_sep", (0,), (2,))
    assert rule.forbidden == {0, 2}, "an unknown word is no reason to drop a text"


def test_tokenizers_without_special_tokens_get_none() -> None:
    ids = dict.fromkeys(("bos_token_id", "cls_token_id", "sep_token_id", "unk_token_id"))
    assert special_tokens(SimpleNamespace(**ids, all_special_ids=[])).prefix == ()


def test_truncation_counts_special_tokens(tokenizer: Any, corpus: dict[str, list[str]]) -> None:
    text = corpus["es"][0]
    whole = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    assert len(whole) > 9
    (sequence,) = encode(tokenizer, [text], context_length=10)
    assert sequence.tokens.tolist() == [0, *whole[:9]]


def test_offsets_point_into_the_text(tokenizer: Any, corpus: dict[str, list[str]]) -> None:
    text = corpus["de"][0]
    (sequence,) = encode(tokenizer, [text], context_length=64)
    assert sequence.offsets[0].tolist() == [-1, -1]
    strings = token_strings(tokenizer, sequence.tokens.tolist())
    compared = 0
    for token, (first, last) in zip(sequence.tokens[1:], sequence.offsets[1:], strict=True):
        if "\ufffd" not in strings[int(token)]:
            assert text[first:last] == strings[int(token)]
            compared += 1
    assert compared > 40


def test_token_strings_keep_spaces_and_mark_pieces_of_characters(tokenizer: Any) -> None:
    ids = tokenizer([" α 7"], add_special_tokens=False)["input_ids"][0]
    strings = token_strings(tokenizer, ids)
    whole = [strings[token] for token in ids]
    assert any("\ufffd" in string for string in whole), "no Greek was seen in training: a letter is two tokens"
    assert whole[0].startswith(" ")
    assert whole[-1].strip() == "7"
    space = tokenizer.convert_tokens_to_ids("Ġ")
    assert token_strings(tokenizer, [space]) == {space: " "}
    letter = tokenizer(["Ġ"], add_special_tokens=False)["input_ids"][0]
    assert space not in letter


def test_text_that_spells_a_special_token_is_left_out(tokenizer: Any) -> None:
    texts = ["plain", "with <|endoftext|> inside", ""]
    first, second, third = encode(tokenizer, texts, context_length=32)
    assert first is not None
    assert second is None
    assert third is None


def test_context_without_room_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="context_length 1 leaves no room"):
        encode(tokenizer, ["a"], context_length=1)


def test_batches_do_not_change_tokens(tokenizer: Any, corpus: dict[str, list[str]]) -> None:
    texts = corpus["fr"][:5]
    together = encode(tokenizer, texts, context_length=20)
    for text, sequence in zip(texts, together, strict=True):
        (alone,) = encode(tokenizer, [text], context_length=20)
        np.testing.assert_array_equal(alone.tokens, sequence.tokens)
