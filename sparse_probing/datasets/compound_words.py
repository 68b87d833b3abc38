"""compound_words: two words that together mean something else, against each word without the other.

A sequence is the text up to and with the word in question, and its last token is what is labelled: positive at the end
of the pair, negative at the second word after another word and at the first word before another. Texts are the user's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from sparse_probing.config import MAX_COUNT, SPLITS
from sparse_probing.datasets.collection import Collection, Feature, Labels, Options, Plan, Sequenced
from sparse_probing.datasets.local_files import LocalTexts
from sparse_probing.datasets.sources import Document, Skipped, Source
from sparse_probing.datasets.tokens import Tokenizer
from sparse_probing.errors import DataError

BIGRAMS = (
    "high school",
    "living room",
    "social security",
    "credit card",
    "blood pressure",
    "prime factors",
    "social media",
    "gene expression",
    "control group",
    "magnetic field",
    "cell lines",
    "trial court",
    "second derivative",
    "north america",
    "human rights",
    "side effects",
    "public health",
    "federal government",
    "third party",
    "clinical trials",
    "mental health",
)
KINDS = ("pair", "second", "first")
# Text before a word that is passed on; the context length cuts it further.
MAX_CHARS = 1 << 15


class CompoundOptions(Options):
    """Options of compound_words. A class is one pair's one kind: the pair, the second word alone, the first alone."""

    bigrams: tuple[str, ...] = Field(default=BIGRAMS, min_length=1, description="Pairs, in lower case, one space.")
    sequences_per_class: int = Field(
        default=1000, ge=3, le=MAX_COUNT, description="Sequences of each pair and kind, all splits."
    )
    min_tokens: int = Field(
        default=4, ge=1, le=MAX_COUNT, description="Sequences with fewer tokens of text are left out."
    )
    rare_features: Literal["refuse", "leave_out"] = Field(
        default="refuse", description="What to do with pairs of which some kind is found in too few documents."
    )
    min_documents: int = Field(
        default=10, ge=len(SPLITS), le=MAX_COUNT, description="Documents that each kind must be found in."
    )
    path: str = Field(min_length=1, exclude=True, description="Table file, folder of them, or folder LABEL/GROUP/file.")
    text_column: str = Field(default="text", description="Column of a table that holds the text.")
    group_column: str | None = Field(
        default=None, description="Rows that must stay together; each row alone if absent."
    )

    @field_validator("bigrams")
    @classmethod
    def _pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not re.fullmatch(r"[^\W\d_]+ [^\W\d_]+", pair) or pair != pair.casefold() for pair in value):
            raise ValueError("expected pairs of words in lower case with one space between")
        twice = next((pair for pair in value if value.count(pair) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is listed twice")
        return value


def feature_name(bigram: str) -> str:
    """A pair's feature."""
    return bigram.replace(" ", "_")


def occurrences(text: str, bigram: str) -> Iterator[tuple[str, int]]:
    """Kind (see `KINDS`) and end of each place where a pair, or one word of it without the other, stands in a text."""
    first, second = bigram.split(" ")
    words = re.compile(
        rf"(?<![\w-])(?:(?P<pair>{first}\s+{second})|(?P<first>{first})|(?P<second>{second}))(?![\w-])", re.IGNORECASE
    )
    for match in words.finditer(text):
        yield str(match.lastgroup), match.end()


@dataclass(frozen=True)
class Occurrences(Source):
    """Texts up to the words of some pairs; the label is the feature and the kind."""

    texts: LocalTexts
    bigrams: tuple[str, ...]

    def check(self) -> None:
        """See `Source.check`."""
        self.texts.check()

    def fingerprints(self) -> dict[str, str]:
        """See `Source.fingerprints`."""
        return self.texts.fingerprints()

    def documents(self, seed: int) -> Iterator[Document]:
        """See `Source.documents`."""
        return (found for found in self.readings(seed) if isinstance(found, Document))

    def readings(self, seed: int) -> Iterator[Document | Skipped]:
        """See `Source.readings`: what the texts skip; a text without any of the words is not skipped but used up."""
        for document in self.texts.readings(seed):
            if isinstance(document, Skipped):
                yield document
                continue
            folded = document.text.casefold()
            for bigram in self.bigrams:
                first, second = bigram.split(" ")
                if first not in folded and second not in folded:
                    continue
                for kind, end in occurrences(document.text, bigram):
                    before = document.text[max(0, end - MAX_CHARS) : end]
                    yield replace(document, text=before, label=f"{feature_name(bigram)}:{kind}")


class CompoundWords(Collection[CompoundOptions]):
    """Pairs of words."""

    name = "compound_words"
    summary = "Pairs of words against each word without the other (option path)"
    options_model = CompoundOptions
    default_pooling = "none"
    poolings = ("none",)
    keep_end = True

    def features(self, options: CompoundOptions) -> tuple[Feature, ...]:
        """See `Collection.features`."""
        return tuple(Feature(feature_name(bigram)) for bigram in options.bigrams)

    def sources(self, options: CompoundOptions) -> tuple[Source, ...]:
        """See `Collection.sources`."""
        texts = LocalTexts(options.path, options.text_column, None, options.group_column)
        return (Occurrences(texts, options.bigrams),)

    def select(self, plan: Plan[CompoundOptions], documents: dict[str, list[Document]]) -> dict[str, list[Document]]:
        """See `Collection.select`: pairs whose three kinds are found in enough documents."""
        kept: dict[str, list[Document]] = {}
        least = plan.options.min_documents
        for feature in plan.features:
            labels = [f"{feature.name}:{kind}" for kind in KINDS]
            counts = [len({item.group_id for item in documents.get(label, ())}) for label in labels]
            if min(counts) >= least:
                kept.update({label: documents[label] for label in labels})
            elif plan.options.rare_features == "refuse":
                found = ", ".join(f"{kind} {count}" for kind, count in zip(KINDS, counts, strict=True))
                raise DataError(
                    f"Feature {feature.name!r}: documents found: {found}; {least} of each are needed.",
                    remedy='Give more text, name the features you want, or set options.rare_features = "leave_out".',
                )
        if not kept:
            raise DataError(
                f"Collection {self.name}: no pair is found in {least} documents of each kind.", remedy="Give more text."
            )
        return kept

    def label(
        self, plan: Plan[CompoundOptions], sequences: Sequence[Sequenced], tokenizer: Tokenizer
    ) -> Iterable[Labels]:
        """See `Collection.label`: the last token of a sequence, for its own pair alone."""
        for feature in plan.features:
            rows = [
                number for number, item in enumerate(sequences) if item.document.label.split(":")[0] == feature.name
            ]
            if rows:
                position = np.array([sequences[number].pool_end - 1 for number in rows], dtype=np.int64)
                is_pair = np.array([sequences[number].document.label.endswith(":pair") for number in rows])
                values = np.where(is_pair, 1, -1).astype(np.int8)
                yield Labels(feature.name, np.array(rows, dtype=np.int64), position, values)
