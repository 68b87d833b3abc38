"""A small real tokenizer, trained here, and small corpora, written here: nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sparse_probing.datasets.sources import LanguageReference

ALPHABETS = {
    "es": "aeiournsñ",
    "de": "äenrstöik",
    "el": "αεινοσρτκ",
    "fr": "éeairnstu",
}


def make_words(alphabet: str, n_words: int, generator: np.random.Generator) -> list[str]:
    return ["".join(generator.choice(list(alphabet), size=generator.integers(3, 8))) for _ in range(n_words)]


def make_text(words: list[str], n_words: int, generator: np.random.Generator) -> str:
    """Words with capitals, digits, abbreviations, line ends and punctuation among them."""
    parts = []
    for _ in range(n_words):
        word = str(generator.choice(words))
        kind = generator.random()
        if kind < 0.1:
            word = word.capitalize()
        elif kind < 0.17:
            word = word.upper()
        elif kind < 0.27:
            word = str(generator.integers(0, 3000))
        elif kind < 0.32:
            word += str(generator.choice([",", ".", " -", "\n\n"]))
        parts.append(word)
    return " ".join(parts)


def train_tokenizer(texts: list[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    special = "<|endoftext|>"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=special, eos_token=special, unk_token=special)


@pytest.fixture(scope="session")
def corpus() -> dict[str, list[str]]:
    """Forty texts of each of four invented languages."""
    generator = np.random.default_rng(7)
    return {
        code: [make_text(make_words(alphabet, 60, generator), 60, generator) for _ in range(40)]
        for code, alphabet in ALPHABETS.items()
    }


@pytest.fixture(scope="session")
def tokenizer(corpus: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose BOS token has id 0, as GPT-NeoX has it."""
    return train_tokenizer([text for code in ("es", "de", "fr") for text in corpus[code]], vocab_size=400)


@pytest.fixture(scope="session")
def english() -> list[str]:
    """Chapters of Python's own reference."""
    return [document.text for document in LanguageReference().documents(0)]


@pytest.fixture(scope="session")
def english_tokenizer(english: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(english, vocab_size=2000)


@pytest.fixture
def write_corpus(tmp_path: Path, corpus: dict[str, list[str]]) -> Callable[..., Path]:
    """Write the corpus as JSON lines; `order` permutes the rows, `extra` adds some."""

    def write(name: str = "texts.jsonl", *, order: Any = None, extra: list[dict[str, str]] | None = None) -> Path:
        rows = [
            {"text": text, "label": code, "group": f"{code}-{number // 2}"}
            for code, texts in corpus.items()
            for number, text in enumerate(texts)
        ]
        rows += extra or []
        if order is not None:
            rows = [rows[index] for index in order.permutation(len(rows))]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
