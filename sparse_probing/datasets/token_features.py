"""Collections whose features belong to single tokens, told from each token's decoded string or its place.

Rows are capped, features share them, and each feature keeps a floor of positives (see `sampling.sample_rows`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparse_probing.config import MAX_COUNT, SPLITS, Pooling
from sparse_probing.datasets.collection import Collection, Feature, Labels, Options, Plan, Sequenced
from sparse_probing.datasets.corpora import mixed_sources
from sparse_probing.datasets.local_files import LocalTexts
from sparse_probing.datasets.sampling import order_key, sample_rows
from sparse_probing.datasets.sources import Source
from sparse_probing.datasets.tokens import Tokenizer, token_strings
from sparse_probing.errors import DataError

# True, False, or None for a token of which it cannot be said.
TokenRule = Callable[[str], bool | None]


class TokenOptions(Options):
    """Options of collections of token features."""

    skip_tokens: int = Field(
        default=10, ge=0, le=MAX_COUNT, description="First positions of a text that are not labelled."
    )
    min_tokens: int = Field(
        default=16, ge=1, le=MAX_COUNT, description="Sequences with fewer tokens of text are left out."
    )
    max_rows: int = Field(default=10_000, ge=30, le=MAX_COUNT, description="Labelled positions, all features together.")
    prevalence_floor: float = Field(default=0.2, ge=0, le=0.5, description="Least share of positives of a feature.")
    rare_features: Literal["refuse", "leave_out"] = Field(
        default="refuse", description="What to do with features of fewer than min_positives positives in some split."
    )
    min_positives: int = Field(
        default=10, ge=1, le=MAX_COUNT, description="Positives that a feature must have in each split."
    )
    path: str | None = Field(
        default=None,
        min_length=1,
        exclude=True,
        description="Table file, folder of them, or folder LABEL/GROUP/file of own texts.",
    )
    text_column: str = Field(default="text", description="Column of a table that holds the text.")
    label_column: str | None = Field(default=None, description="Kind of text, for balance; one kind if absent.")
    group_column: str | None = Field(
        default=None, description="Rows that must stay together; each row alone if absent."
    )


TokenOptionsT = TypeVar("TokenOptionsT", bound=TokenOptions)


class TokenCollection(Collection[TokenOptionsT]):
    """Base of collections that label single positions: of the user's texts, or of a mixed corpus."""

    default_pooling: Pooling = "none"  # type: ignore[misc]
    poolings: tuple[Pooling, ...] = ("none",)  # type: ignore[misc]

    def sources(self, options: TokenOptionsT) -> tuple[Source, ...]:
        """See `Collection.sources`."""
        if options.path is None:
            return mixed_sources()
        return (LocalTexts(options.path, options.text_column, options.label_column, options.group_column),)


class TokenFeatureCollection(TokenCollection[TokenOptionsT]):
    """Base of collections of token classes; a subclass gives one rule a feature."""

    # Whether a feature holds only of tokens that end a word: the token after them does not go on with a letter.
    ends_word: ClassVar[bool] = False

    @abstractmethod
    def rules(self) -> dict[str, TokenRule]:
        """Feature to its rule on a token's decoded string, in order."""

    def features(self, options: TokenOptionsT) -> tuple[Feature, ...]:
        """See `Collection.features`."""
        return tuple(Feature(name) for name in self.rules())

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
        positive = np.array([[answer is True for answer in row] for row in answers], dtype=bool)[inverse]
        allowed = np.array([[answer is not None for answer in row] for row in answers], dtype=bool)[inverse]
        if self.ends_word:
            goes_on = np.array([strings[token][:1].isalpha() for token in vocabulary.tolist()])[inverse]
            follows = np.append((sequence[1:] == sequence[:-1]) & (position[1:] == position[:-1] + 1), False)
            positive &= ~(follows & np.append(goes_on[1:], False))[:, None]
            allowed &= follows[:, None]
        kept = self._frequent(plan, names, positive & allowed, split)
        names = [names[number] for number in kept]
        positive, allowed = positive[:, kept], allowed[:, kept]
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

    def _frequent(
        self, plan: Plan[TokenOptionsT], names: Sequence[str], positive: NDArray[np.bool_], split: NDArray[np.int64]
    ) -> list[int]:
        """Numbers of the features with enough positives in each split."""
        counts = np.array([positive[split == index].sum(axis=0) for index in range(len(SPLITS))])
        least = plan.options.min_positives
        kept = [number for number in range(len(names)) if counts[:, number].min() >= least]
        if len(kept) < len(names) and (plan.options.rare_features == "refuse" or not kept):
            rare = next(number for number in range(len(names)) if number not in kept)
            where = SPLITS[int(counts[:, rare].argmin())]
            raise DataError(
                f"Feature {names[rare]!r} has {counts[:, rare].min()} positive positions in {where}; {least} are needed "
                f"({len(names) - len(kept)} of {len(names)} features lack some).",
                remedy='Give more or other text, name the features you want, or set options.rare_features = "leave_out".',
            )
        return kept


def candidates(
    plan: Plan[TokenOptionsT], sequences: Sequence[Sequenced]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.uint64]]:
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
