"""position: where in its sequence a token stands, as numbers to regress on.

All features share their rows. Positions count from 0, special tokens included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparse_probing.config import MAX_COUNT
from sparse_probing.datasets.collection import Feature, Labels, Plan, Sequenced
from sparse_probing.datasets.sampling import split_quotas
from sparse_probing.datasets.token_features import TokenCollection, TokenOptions, candidates
from sparse_probing.datasets.tokens import Tokenizer

Floats = NDArray[np.float64]

# Each from the position, the sequence's number of tokens, and the context length.
TARGETS: dict[str, Callable[[Floats, Floats, int], Floats]] = {
    # Tokens before this one.
    "abs_pos": lambda position, n_tokens, context: position,
    # The same as a share of the context.
    "norm_abs_pos": lambda position, n_tokens, context: position / (context - 1),
    # Tokens after this one.
    "rel_pos": lambda position, n_tokens, context: n_tokens - 1 - position,
    # The share of its own sequence that lies before it.
    "norm_rel_pos": lambda position, n_tokens, context: position / (n_tokens - 1),
    # Natural logarithm of its ordinal.
    "log_pos": lambda position, n_tokens, context: np.log1p(position),
}


class PositionOptions(TokenOptions):
    """Options of position."""

    skip_tokens: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="First positions of a text that are not labelled."
    )
    max_rows: int = Field(default=50_000, ge=30, le=MAX_COUNT, description="Labelled positions.")


class Position(TokenCollection[PositionOptions]):
    """A token's place."""

    name = "position"
    summary = "A token's place in its sequence: five regression targets"
    options_model = PositionOptions

    def features(self, options: PositionOptions) -> tuple[Feature, ...]:
        """See `Collection.features`."""
        return tuple(Feature(name, "regression") for name in TARGETS)

    def label(
        self, plan: Plan[PositionOptions], sequences: Sequence[Sequenced], tokenizer: Tokenizer
    ) -> Iterable[Labels]:
        """See `Collection.label`: a random sample of positions in each split."""
        sequence, position, _, split, priority = candidates(plan, sequences)
        chosen = []
        for index, quota in enumerate(split_quotas(plan.options.max_rows, plan.spec.split_fractions)):
            rows = np.flatnonzero(split == index)
            chosen.append(rows[np.argsort(priority[rows], kind="stable")[:quota]])
        rows = np.sort(np.concatenate(chosen))
        lengths = np.array([len(item.tokens.tokens) for item in sequences], dtype=np.float64)[sequence[rows]]
        for feature in plan.features:
            target = TARGETS[feature.name](position[rows].astype(np.float64), lengths, plan.spec.context_length)
            yield Labels(feature.name, sequence[rows], position[rows], target)
