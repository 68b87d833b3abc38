"""Collections whose features belong to single tokens, told from each token's decoded string or its place.

Rows are capped, features share them, and each feature keeps a floor of positives (see `sampling.sample_rows`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from pydantic import Field

from sparse_probing.config import Pooling
from sparse_probing.datasets.collection import Collection, Feature, Labels, Options, Plan, Sequenced
from sparse_probing.datasets.corpora import mixed_sources
from sparse_probing.datasets.local_files import LocalTexts
from sparse_probing.datasets.sampling import order_key, sample_rows
from sparse_probing.datasets.sources import Source
from sparse_probing.datasets.tokens import Tokenizer, token_strings
from sparse_probing.schemas import SPLITS

# True, False, or None for a token of which it cannot be said.
TokenRule = Callable[[str], bool | None]


class TokenOptions(Options):
    """Options of collections of token features."""

    skip_tokens: int = Field(default=10, ge=0, description="First positions of a text that are not labelled.")
    min_tokens: int = Field(default=16, ge=1, description="Sequences with fewer tokens of text are left out.")
    max_rows: int = Field(default=10_000, ge=30, description="Labelled positions, all features together.")
    prevalence_floor: float = Field(default=0.2, ge=0, le=0.5, description="Least share of positives of a feature.")
    path: str | None = Field(
        default=None, exclude=True, description="Table file, folder of them, or folder LABEL/GROUP/file of own texts."
    )
    text_column: str = "text"
    label_column: str | None = Field(default=None, description="Kind of text, for balance; one kind if absent.")
    group_column: str | None = Field(
        default=None, description="Rows that must stay together; each row alone if absent."
    )


TokenOptionsT = TypeVar("TokenOptionsT", bound=TokenOptions)


class TokenFeatureCollection(Collection[TokenOptionsT]):
    """Base of collections of token features; a subclass gives one rule a feature."""

    default_pooling: Pooling = "none"  # type: ignore[misc]
    poolings: tuple[Pooling, ...] = ("none",)  # type: ignore[misc]

    @abstractmethod
    def rules(self) -> dict[str, TokenRule]:
        """Feature to its rule on a token's decoded string, in order."""

    def features(self, options: TokenOptionsT) -> tuple[Feature, ...]:
        """See `Collection.features`."""
        return tuple(Feature(name) for name in self.rules())

    def sources(self, options: TokenOptionsT) -> tuple[Source, ...]:
        """See `Collection.sources`."""
        if options.path is None:
            return mixed_sources()
        return (LocalTexts(options.path, options.text_column, options.label_column, options.group_column),)

    def label(
        self, plan: Plan[TokenOptionsT], sequences: Sequence[Sequenced], tokenizer: Tokenizer
    ) -> Iterable[Labels]:
        """See `Collection.label`: each feature's rule on a sample of positions."""
        names = [feature.name for feature in plan.features]
        sequence, position, ids, split, priority = candidates(plan, sequences)
        vocabulary, inverse = np.unique(ids, return_inverse=True)
        strings = token_strings(tokenizer, vocabulary.tolist())
        rules = self.rules()
        answers = [[rules[name](strings[token]) for name in names] for token in vocabulary.tolist()]
        positive = np.array([[answer is True for answer in row] for row in answers], dtype=bool)
        allowed = np.array([[answer is not None for answer in row] for row in answers], dtype=bool)
        positive, allowed = positive[inverse], allowed[inverse]
        sample = sample_rows(
            positive,
            allowed,
            split,
            priority,
            features=names,
            max_rows=plan.options.max_rows,
            fractions=plan.spec.split_fractions,
            floor=plan.options.prevalence_floor,
        )
        for number, (name, rows) in enumerate(zip(names, sample.rows, strict=True)):
            values = np.where(positive[rows, number], 1, -1).astype(np.int8)
            yield Labels(name, sequence[rows], position[rows], values)


def candidates(
    plan: Plan[TokenOptionsT], sequences: Sequence[Sequenced]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All positions that may be labelled: sequence, position, token id, split index and a random priority, (n,) each."""
    parts = []
    for number, item in enumerate(sequences):
        positions = np.flatnonzero(~item.tokens.special)
        positions = positions[(positions >= item.pool_start) & (positions < item.pool_end)]
        generator = np.random.default_rng(order_key(plan.spec.seed, "rows", item.document.group_id, item.document.text))
        priority = generator.integers(0, 1 << 63, size=len(item.tokens.tokens), dtype=np.uint64)[positions]
        parts.append(
            (
                np.full(len(positions), number, dtype=np.int64),
                positions.astype(np.int64),
                item.tokens.tokens[positions],
                np.full(len(positions), SPLITS.index(item.split), dtype=np.int64),
                priority,
            )
        )
    sequence, position, ids, split, priorities = (np.concatenate(column) for column in zip(*parts, strict=True))
    return sequence, position, ids, split, priorities
