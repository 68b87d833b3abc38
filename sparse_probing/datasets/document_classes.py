"""Collections whose features are classes of documents, one against the rest.

A label belongs to the pooled sequence or, with pooling ``none``, to some random positions of it. Where the documents
come from is a subclass's business, or the user's: with `path` set, local files take the place of installed packages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, TypeVar

import numpy as np
from pydantic import Field

from sparse_probing.config import MAX_COUNT, Pooling
from sparse_probing.datasets.collection import Collection, Feature, Labels, Options, Plan, Sequenced
from sparse_probing.datasets.local_files import LocalTexts
from sparse_probing.datasets.sampling import random_positions
from sparse_probing.datasets.sources import Source
from sparse_probing.datasets.tokens import Tokenizer
from sparse_probing.errors import InputError
from sparse_probing.mistakes import choices, listed


class DocumentClassOptions(Options):
    """Options of collections of document classes."""

    positions_per_sequence: int = Field(
        default=2,
        ge=1,
        le=MAX_COUNT,
        description="Random positions of each sequence that are labelled, with pooling none.",
    )
    path: str | None = Field(
        default=None,
        min_length=1,
        exclude=True,
        description="Table file, folder of them, or folder LABEL/GROUP/file of own texts.",
    )
    text_column: str = Field(default="text", description="Column of a table that holds the text.")
    label_column: str = Field(default="label", description="Column of a table that holds the class.")
    group_column: str | None = Field(
        default=None, description="Rows that must stay together; each row alone if absent."
    )


def known_classes(names: tuple[str, ...], known: Iterable[str], *, own_texts: bool) -> tuple[str, ...]:
    """The names, if they are distinct and, unless the user's own texts say what there is, known.

    Raises
    ------
    ValueError
        If they are not: for pydantic, which says of which option.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is listed twice")
    unknown = [] if own_texts else [name for name in names if name not in set(known)]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is unknown; {choices(unknown[0], known)}")
    return names


DocumentOptionsT = TypeVar("DocumentOptionsT", bound=DocumentClassOptions)


class DocumentClassCollection(Collection[DocumentOptionsT]):
    """Base of collections of document classes; a subclass names classes and its own source."""

    default_pooling: Pooling = "mean"  # type: ignore[misc]
    poolings: tuple[Pooling, ...] = ("mean", "max", "last", "none")  # type: ignore[misc]
    # The option that names the classes, for messages.
    classes_option: ClassVar[str] = "languages"

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

    def preflight(self, plan: Plan[DocumentOptionsT]) -> None:
        """See `Collection.preflight`: the user's texts have every class, too."""
        super().preflight(plan)
        options = plan.options
        if options.path is None:
            return
        (texts,) = self._own_texts(options)
        wanted = self.classes(options)
        missing = set(wanted.values())
        found: dict[str, None] = {}
        for label in texts.labels_found():
            found[label] = None
            missing.discard(texts.labels.get(label, ""))
            if not missing:
                return
        asked = getattr(options, self.classes_option)
        absent = list(
            dict.fromkeys(name if name in asked else label for label, name in wanted.items() if name in missing)
        )
        more = f" (nor of {listed(absent[1:])})" if len(absent) > 1 else ""
        raise InputError(
            f"Collection {self.name}: no text of class {absent[0]!r}{more} in {options.path}; "
            f"{choices(absent[0], found)}.",
            remedy=f"Edit {self.classes_option} in its options, or label_column if the labels are elsewhere.",
        )

    def sources(self, options: DocumentOptionsT) -> tuple[Source, ...]:
        """See `Collection.sources`."""
        if options.path is None:
            return self.own_sources(options)
        return self._own_texts(options)

    def _own_texts(self, options: DocumentOptionsT) -> tuple[LocalTexts]:
        classes = self.classes(options)
        labels = {**{name: name for name in classes.values()}, **classes}
        path = str(options.path)
        return (LocalTexts(path, options.text_column, options.label_column, options.group_column, labels=labels),)

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
