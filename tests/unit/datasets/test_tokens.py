"""Special tokens, truncation, offsets and token strings, on real tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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


WORDS = ["<s>", "</s>", "<pad>", "<unk>", "a", "b", "c", "A", "0"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def words(template: str | None = None, **named: str) -> PreTrainedTokenizerFast:
    """One token a word, ids in the order of `WORDS`, framed by a template or by none."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        ends = [(word, WORDS.index(word)) for word in ("<s>", "</s>")]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(named or NAMED))


def numbered(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def pieces(*special: str) -> list[tuple[str, float]]:
    return [*((token, 0.0) for token in special), ("▁", -1.0), ("a", -1.0), ("▁a", -1.5)]


REAL = {
    "BertTokenizer": (
        "template",
        ["[CLS]"],
        ["[SEP]"],
        {"vocab": numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a")},
    ),
    "RobertaTokenizer": (
        "template",
        ["<s>"],
        ["</s>"],
        {"vocab": numbered("<s>", "<pad>", "</s>", "<unk>", "<mask>", *BYTES), "merges": []},
    ),
    "XLMRobertaTokenizer": (
        "template",
        ["<s>"],
        ["</s>"],
        {"vocab": [*pieces("<s>", "<pad>", "</s>", "<unk>"), ("<mask>", 0.0)]},
    ),
    "CamembertTokenizer": (
        "template",
        ["<s>"],
        ["</s>"],
        {
            "vocab": [
                *pieces("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>"),
                ("<mask>", 0.0),
                ("<s>", 0.0),
                ("</s>", 0.0),
            ]
        },
    ),
    "T5Tokenizer": ("template", [], ["</s>"], {"vocab": pieces("<pad>", "</s>", "<unk>")}),
    "GPT2Tokenizer": ("bos", ["<|endoftext|>"], [], {"vocab": numbered("<|endoftext|>", *BYTES), "merges": []}),
    "GPTNeoXTokenizer": (
        "bos",
        ["<|endoftext|>"],
        [],
        {"vocab": numbered("<|endoftext|>", "<|padding|>", *BYTES), "merges": []},
    ),
    "Qwen2Tokenizer": ("none", [], [], {"vocab": numbered("<|endoftext|>", *BYTES), "merges": []}),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_classes_are_framed_as_they_frame_a_text_themselves(name: str) -> None:
    """RoBERTa, XLM-R and CamemBERT got <s> and no </s>, and T5 nothing: attributes decided, not the template."""
    expected, before, after, arguments = REAL[name]
    tokenizer = getattr(transformers, name)(**arguments)
    rule = special_tokens(tokenizer)
    assert rule.name == expected
    assert tokenizer.convert_ids_to_tokens(list(rule.prefix)) == before
    assert tokenizer.convert_ids_to_tokens(list(rule.suffix)) == after
    (sequence,) = encode(tokenizer, ["a"], context_length=16)
    own = tokenizer(["a"])["input_ids"][0]
    assert sequence.tokens.tolist() == ([tokenizer.bos_token_id, *own] if expected == "bos" else own)
    assert sequence.special.sum() == len(before) + len(after)
    assert (sequence.text_start, sequence.text_end) == (len(before), len(sequence.tokens) - len(after))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"add_bos_token": True}, ("template", (1,), ())),
        ({"add_bos_token": True, "add_eos_token": True}, ("template", (1,), (2,))),
        ({"add_bos_token": False, "add_eos_token": True}, ("template", (), (2,))),
    ],
)
def test_llama_settings_count_as_what_they_do(
    settings: dict[str, bool], expected: tuple[str, tuple[int, ...], tuple[int, ...]]
) -> None:
    """A BOS token was added whatever add_bos_token and add_eos_token said."""
    tokenizer = transformers.LlamaTokenizer(
        vocab=numbered("<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"), merges=[], **settings
    )
    rule = special_tokens(tokenizer)
    assert (rule.name, rule.prefix, rule.suffix) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("<s> $A </s>", ("template", (0,), (1,))),
        ("<s> $A", ("template", (0,), ())),
        ("$A </s>", ("template", (), (1,))),
        ("<s> <s> $A </s>", ("template", (0, 0), (1,))),
        ("<s> $A <s>", ("template", (0,), (0,))),
        (None, ("bos", (0,), ())),
    ],
)
def test_templates(template: str | None, expected: tuple[str, tuple[int, ...], tuple[int, ...]]) -> None:
    rule = special_tokens(words(template))
    assert (rule.name, rule.prefix, rule.suffix) == expected
    assert rule.forbidden == {0, 1, 2}, "an unknown word is no reason to drop a text"


def test_what_a_template_adds_is_special_even_if_no_attribute_names_it() -> None:
    tokenizer = words("<s> $A </s>", unk_token="<unk>")
    (sequence,) = encode(tokenizer, ["a b"], context_length=16)
    assert sequence.tokens.tolist() == [0, 4, 5, 1]
    assert sequence.special.tolist() == [True, False, False, True]
    assert {0, 1} <= special_tokens(tokenizer).forbidden


def test_tokenizers_without_special_tokens_get_none() -> None:
    rule = special_tokens(words(unk_token="<unk>"))
    assert (rule.name, rule.prefix, rule.suffix) == ("none", (), ())


def test_a_tokenizer_that_frames_texts_differently_is_refused() -> None:
    class Moody(PreTrainedTokenizerFast):
        def __call__(self, text: list[str], **options: Any) -> Any:
            found = super().__call__(text, **options)
            if options.get("add_special_tokens"):
                found["input_ids"] = [
                    [*ids, 1] if len(one) > 1 else ids for one, ids in zip(text, found["input_ids"], strict=True)
                ]
            return found

    moody = Moody(tokenizer_object=words("<s> $A").backend_tokenizer, **NAMED)
    with pytest.raises(InputError, match="Moody puts other special tokens around one text than around another"):
        special_tokens(moody)


@pytest.mark.parametrize("keep_end", [False, True])
def test_truncation_saved_with_a_tokenizer_decides_nothing(tmp_path: Path, keep_end: bool) -> None:
    """truncation_side "left" made the last tokens of each text be probed instead of the first."""
    tokenizer = words("<s> $A </s>")
    tokenizer.truncation_side = "left"
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 3
    tokenizer.save_pretrained(tmp_path)
    backend = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    backend["truncation"] = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    backend["padding"] = {
        "strategy": {"Fixed": 12},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.backend_tokenizer.truncation is not None
    assert saved.backend_tokenizer.padding is not None
    rule = special_tokens(saved)
    assert (rule.prefix, rule.suffix) == ((0,), (1,))
    long, short = encode(saved, ["a b c a a b", "b"], context_length=6, keep_end=keep_end)
    assert long.tokens.tolist() == ([0, 6, 4, 4, 5, 1] if keep_end else [0, 4, 5, 6, 4, 1])
    assert long.offsets[1].tolist() == ([4, 5] if keep_end else [0, 1])
    assert short.tokens.tolist() == [0, 5, 1]
    assert token_strings(saved, [4, 5]) == {4: " a", 5: " b"}
    assert (saved.truncation_side, saved.padding_side, saved.model_max_length) == ("left", "left", 3)


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


def test_a_tokenizer_without_offsets_is_refused() -> None:
    """ByT5's gave a KeyError: asked for offsets, it leaves them out and raises nothing."""
    with pytest.raises(InputError, match="ByT5Tokenizer gives no character offsets"):
        encode(transformers.ByT5Tokenizer(), ["a"], context_length=8)
