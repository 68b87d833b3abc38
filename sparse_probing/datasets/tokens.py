"""Text to tokens: special tokens, truncation, offsets, and the string of each token.

Works with any tokenizer object of the usual "fast" interface that is handed in; loads none. No sampling, no labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparse_probing.errors import InputError

REPLACEMENT = "\ufffd"
# No token covers more characters of real text than this on average over a sequence; longer text is cut before encoding.
MAX_CHARS_PER_TOKEN = 24
# Texts by which to see what a tokenizer frames a text with. One of the letters is in nearly every vocabulary.
_FRAMED_TEXTS = ("a", "A", "0", "The 7 days.", "")


class Tokenizer(Protocol):
    """What is needed of a tokenizer: the interface of Hugging Face's fast tokenizers."""

    bos_token_id: int | None
    cls_token_id: int | None
    sep_token_id: int | None
    unk_token_id: int | None
    all_special_ids: list[int]

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Encode a batch."""

    def decode(self, token_ids: list[int], **options: Any) -> Any:
        """Ids to text."""


@dataclass(frozen=True)
class SpecialTokens:
    """Which special tokens frame a sequence.

    Attributes
    ----------
    name:
        The rule that applied. ``template``: what the tokenizer itself puts around a text. ``bos``: it puts nothing there,
        but names a BOS token, which is put first. ``none``: neither.
    prefix, suffix:
        Ids before and after the text.
    ids:
        All special ids; none of them is ever probed.
    forbidden:
        Special ids that text must not hold in the middle: a sequence that does is left out.
    unknown:
        The id that stands for whatever the vocabulary lacks, if there is one.
    """

    name: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    ids: frozenset[int]
    forbidden: frozenset[int]
    unknown: int | None


@dataclass(frozen=True)
class TokenSequence:
    """One tokenised text.

    Attributes
    ----------
    tokens:
        (n_tokens,) int32, special tokens included.
    offsets:
        (n_tokens, 2) int32: first and last character (exclusive) of each token in the text; -1 for special tokens.
    special:
        (n_tokens,) bool: positions that are never probed.
    text_start, text_end:
        The text's positions are [text_start, text_end).
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int32]
    special: NDArray[np.bool_]
    text_start: int
    text_end: int


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """The frame that a tokenizer puts around a text by itself; if it puts none there, its BOS token where it names one.

    Decoders such as GPT-2 and Pythia leave it to their user to begin with the BOS token that they were trained with. An
    id of 0 is as good as any other.

    Raises
    ------
    InputError
        If the tokenizer does not frame all texts alike.
    """
    bos, cls, sep, unknown = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "cls", "sep", "unk"))
    prefix, suffix = _template(tokenizer)
    name = "template" if prefix or suffix else "none"
    if name == "none" and bos is not None:
        name, prefix = "bos", (int(bos),)
    ids = frozenset({*map(int, tokenizer.all_special_ids), *prefix, *suffix})
    forbidden = ids if unknown in (None, bos, cls, sep, *prefix, *suffix) else ids - {unknown}
    return SpecialTokens(name, prefix, suffix, ids, forbidden, unknown)


def _template(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer puts before and after every text of its own accord."""
    texts = list(_FRAMED_TEXTS)
    whole = tokenizer(texts, add_special_tokens=True)["input_ids"]
    inner = tokenizer(texts, add_special_tokens=False)["input_ids"]
    frames = set.intersection(*(_frames(ids, text) for ids, text in zip(whole, inner, strict=True)))
    if not frames or (len(frames) > 1 and not any(inner)):
        raise InputError(
            f"Tokenizer {type(tokenizer).__name__} puts other special tokens around one text than around another, or has no "
            f"token for any of {', '.join(map(repr, texts[:-1]))}; expected the same around each.",
            remedy="Use another tokenizer, or save it with a post-processor that puts the same tokens around every text.",
        )
    # Several only if the text's own tokens are those of the frame: what was added is then at the beginning.
    return max(frames, key=lambda frame: len(frame[0]))


def _frames(whole: list[int], inner: list[int]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every way to see `whole` as something, then `inner`, then something."""
    return {
        (tuple(whole[:start]), tuple(whole[start + len(inner) :]))
        for start in range(len(whole) - len(inner) + 1)
        if whole[start : start + len(inner)] == inner
    }


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    context_length: int,
    special: SpecialTokens | None = None,
    keep_end: bool = False,
) -> list[TokenSequence | None]:
    """Tokenise texts, at most `context_length` tokens each, special tokens included.

    Of a longer text the first tokens are kept or, with `keep_end`, the last. What the tokenizer was saved with (side and
    length of truncation, padding) has no say in it.

    Returns
    -------
    One entry per text; None where the text is empty or holds a special token of its own.

    Raises
    ------
    InputError
        If the context has no room for text, or the tokenizer gives no offsets.
    """
    special = special or special_tokens(tokenizer)
    room = context_length - len(special.prefix) - len(special.suffix)
    if room < 1:
        raise InputError(
            f"context_length {context_length} leaves no room beside {len(special.prefix) + len(special.suffix)} special "
            "tokens.",
            remedy="Raise context_length.",
        )
    if not texts:
        return []
    asked = list(texts) if keep_end else [text[: room * MAX_CHARS_PER_TOKEN] for text in texts]
    ids, offsets = _ids_and_offsets(tokenizer, asked)
    kept = slice(-room, None) if keep_end else slice(room)
    return [_frame(one[kept], spans[kept], special) for one, spans in zip(ids, offsets, strict=True)]


def _ids_and_offsets(tokenizer: Tokenizer, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    try:
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
        return encoded["input_ids"], encoded["offset_mapping"]
    except (NotImplementedError, KeyError) as error:
        raise InputError(
            f"Tokenizer {type(tokenizer).__name__} gives no character offsets.",
            remedy="Save the model's fast tokenizer beside it (tokenizer.json), or use a model that has one.",
        ) from error


def _frame(ids: list[int], offsets: list[tuple[int, int]], special: SpecialTokens) -> TokenSequence | None:
    if not ids or not special.forbidden.isdisjoint(ids):
        return None
    before, after = len(special.prefix), len(special.suffix)
    tokens = np.array([*special.prefix, *ids, *special.suffix], dtype=np.int32)
    spans = np.full((len(tokens), 2), -1, dtype=np.int32)
    spans[before : len(tokens) - after] = offsets
    is_special = np.isin(tokens, np.fromiter(special.ids, dtype=np.int32, count=len(special.ids)))
    is_special[:before] = True
    is_special[len(tokens) - after :] = True
    return TokenSequence(tokens, spans, is_special, before, len(tokens) - after)


def token_strings(tokenizer: Tokenizer, ids: Iterable[int]) -> dict[int, str]:
    """Each id's text as it stands inside a sentence: leading spaces kept, byte pieces of a character as U+FFFD.

    Decoded behind an anchor token, because some tokenizers drop the space of a sequence's first token.
    """
    anchor = [int(token) for token in tokenizer(["a"], add_special_tokens=False)["input_ids"][0]]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    head = str(tokenizer.decode(anchor, **options))
    strings: dict[int, str] = {}
    for token in dict.fromkeys(int(token) for token in ids):
        whole = str(tokenizer.decode([*anchor, token], **options))
        strings[token] = whole[len(head) :] if whole.startswith(head) else str(tokenizer.decode([token], **options))
    return strings
