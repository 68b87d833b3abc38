"""Collections whose features are classes of documents, one against the rest.

A label belongs to the pooled sequence or, with pooling ``none``, to some random positions of it. Where the documents
come from is a subclass's business, or the user's: with `path` set, local files take the place of installed packages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from pydantic import Field

from sparse_probing.config import Pooling
from sparse_probing.datasets.collection import Collection, Feature, Labels, Options, Plan, Sequenced
from sparse_probing.datasets.local_files import LocalTexts
from sparse_probing.datasets.sampling import random_positions
from sparse_probing.datasets.sources import Source
from sparse_probing.datasets.tokens import Tokenizer


class DocumentClassOptions(Options):
    """Options of collections of document classes."""

    positions_per_sequence: int = Field(
        default=2, ge=1, description="Random positions of each sequence that are labelled, with pooling none."
    )
    path: str | None = Field(
        default=None, exclude=True, description="Table file, folder of them, or folder LABEL/GROUP/file of own texts."
    )
    text_column: str = "text"
    label_column: str = "label"
    group_column: str | None = Field(
        default=None, description="Rows that must stay together; each row alone if absent."
    )


DocumentOptionsT = TypeVar("DocumentOptionsT", bound=DocumentClassOptions)


class DocumentClassCollection(Collection[DocumentOptionsT]):
    """Base of collections of document classes; a subclass names classes and its own source."""

    default_pooling: Pooling = "mean"  # type: ignore[misc]
    poolings: tuple[Pooling, ...] = ("mean", "max", "last", "none")  # type: ignore[misc]

    @abstractmethod
    def classes(self, options: DocumentOptionsT) -> Mapping[str, str]:
        """Label as sources write it to the feature's name, in order. Several labels may share a feature."""

    @abstractmethod
    def own_sources(self, options: DocumentOptionsT) -> tuple[Source, ...]:
        """Sources used where no `path` is given; documents carry features' names as labels."""

    def features(self, options: DocumentOptionsT) -> tuple[Feature, ...]:
        """See `Collection.features`."""
        return tuple(Feature(name) for name in dict.fromkeys(self.classes(options).values()))

    def classes_needed(self, plan: Plan[DocumentOptionsT]) -> tuple[str, ...]:
        """See `Collection.classes_needed`."""
        return tuple(dict.fromkeys(self.classes(plan.options).values()))

    def sources(self, options: DocumentOptionsT) -> tuple[Source, ...]:
        """See `Collection.sources`."""
        if options.path is None:
            return self.own_sources(options)
        classes = self.classes(options)
        labels = {**{name: name for name in classes.values()}, **classes}
        return (
            LocalTexts(options.path, options.text_column, options.label_column, options.group_column, labels=labels),
        )

    def label(
        self, plan: Plan[DocumentOptionsT], sequences: Sequence[Sequenced], tokenizer: Tokenizer
    ) -> Iterable[Labels]:
        """See `Collection.label`: +1 where the document is of the feature's class."""
        index = np.arange(len(sequences), dtype=np.int64)
        position = None
        if plan.pooling == "none":
            chosen = [
                random_positions(
                    item.pool_start,
                    item.pool_end,
                    plan.options.positions_per_sequence,
                    seed=plan.spec.seed,
                    key=(item.document.text,),
                )
                for item in sequences
            ]
            index = np.repeat(index, [len(positions) for positions in chosen])
            position = np.concatenate(chosen)
        classes = np.array([item.document.label for item in sequences])[index]
        for feature in plan.features:
            values = np.where(classes == feature.name, 1, -1).astype(np.int8)
            yield Labels(feature.name, index, position, values)
