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
        ``bos``, ``cls_sep`` or ``none``.
    prefix, suffix:
        Ids before and after the text.
    ids:
        All special ids; none of them is ever probed.
    forbidden:
        Special ids that text must not hold in the middle: a sequence that does is left out.
    """

    name: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    ids: frozenset[int]
    forbidden: frozenset[int]


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
    """The frame that a tokenizer asks for: its BOS token; for encoders CLS and SEP; else nothing.

    An id of 0 is as good as any other.
    """
    ids = frozenset(int(token) for token in tokenizer.all_special_ids)
    bos, cls, sep, unknown = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "cls", "sep", "unk"))
    forbidden = ids if unknown is None or unknown in (bos, cls, sep) else ids - {unknown}
    if bos is not None:
        return SpecialTokens("bos", (int(bos),), (), ids, forbidden)
    if cls is not None and sep is not None:
        return SpecialTokens("cls_sep", (int(cls),), (int(sep),), ids, forbidden)
    return SpecialTokens("none", (), (), ids, forbidden)


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    context_length: int,
    special: SpecialTokens | None = None,
    keep_end: bool = False,
) -> list[TokenSequence | None]:
    """Tokenise texts, at most `context_length` tokens each, special tokens included.

    Of a longer text the first tokens are kept or, with `keep_end`, the last.

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
    try:
        encoded = tokenizer(
            list(texts) if keep_end else [text[: room * MAX_CHARS_PER_TOKEN] for text in texts],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            **({} if keep_end else {"truncation": True, "max_length": room}),
        )
    except NotImplementedError as error:
        raise InputError(
            f"Tokenizer {type(tokenizer).__name__} gives no character offsets.",
            remedy="Use the model's fast tokenizer.",
        ) from error
    return [
        _frame(ids[-room:], offsets[-room:], special)
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


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
