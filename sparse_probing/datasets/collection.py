"""The base of all feature collections: from documents to tokenised sequences with splits and labels.

The base owns what must be right everywhere: options, splits by group, near-duplicates, tokenisation, balance, the order
of rows. A collection says where its text comes from, what its features are and which label a position or sequence has.
No file is written here; see `build`.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparse_probing.config import MAX_COUNT, SPLITS, CollectionSpec, Pooling
from sparse_probing.datasets.sampling import NearDuplicates, assign_splits, order_key, split_quotas
from sparse_probing.datasets.sources import Document, Skipped, Source, ending, windows
from sparse_probing.datasets.tokens import SpecialTokens, Tokenizer, TokenSequence, encode, special_tokens
from sparse_probing.errors import DataError, InputError
from sparse_probing.mistakes import choices, explain

Progress = Callable[[int, int], None]
CHARS_PER_TOKEN = 8
BATCH = 256
# More texts than wanted are tokenised, because some turn out too short.
SURPLUS = 1.25


class Options(BaseModel):
    """Base of a collection's options: frozen, numbers are finite, and an option that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sequences_per_class: int = Field(
        default=300, ge=len(SPLITS), le=MAX_COUNT, description="Sequences of each class, all splits."
    )
    windows_per_document: int = Field(
        default=1, ge=1, le=MAX_COUNT, description="Pieces taken of a document longer than a context."
    )
    documents_per_class: int = Field(
        default=20_000,
        ge=len(SPLITS),
        le=MAX_COUNT,
        description="Texts or pieces of a class that are considered, chosen by the seed.",
    )
    min_tokens: int = Field(
        default=8, ge=1, le=MAX_COUNT, description="Sequences with fewer tokens of text are left out."
    )
    skip_tokens: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="Tokens at the start of the text that nothing may use."
    )


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Feature:
    """A feature's name and whether it is a class or a number."""

    name: str
    task: Literal["classification", "regression"] = "classification"


@dataclass(frozen=True)
class Plan(Generic[OptionsT]):
    """A spec with everything that it leaves open filled in.

    Attributes
    ----------
    spec:
        The spec as it decides the digest: options and features written out, pooling resolved.
    options:
        The validated options.
    features:
        The features to label, in the collection's order.
    pooling:
        How positions become a row.
    """

    spec: CollectionSpec
    options: OptionsT
    features: tuple[Feature, ...]
    pooling: Pooling

    @property
    def level(self) -> Literal["token", "sequence"]:
        """Whether a label belongs to a position or to a whole sequence."""
        return "token" if self.pooling == "none" else "sequence"


@dataclass(frozen=True)
class Sequenced:
    """A document's tokens, its split, and the positions that pooling and labels may use."""

    document: Document
    split: str
    tokens: TokenSequence
    pool_start: int
    pool_end: int


@dataclass(frozen=True)
class Labels:
    """One feature's labels.

    Attributes
    ----------
    feature:
        Its name.
    sequence:
        (n) int64, index into the sequences.
    position:
        (n) int64, or None for whole sequences.
    values:
        (n): int8 of +1 and -1 for a class, float64 for a number.
    """

    feature: str
    sequence: NDArray[np.int64]
    position: NDArray[np.int64] | None
    values: NDArray[Any]


@dataclass(frozen=True)
class Dataset:
    """Everything that a finished dataset holds, in memory."""

    sequences: tuple[Sequenced, ...]
    labels: tuple[Labels, ...]
    special: SpecialTokens
    skipped: tuple[Skipped, ...]


class Collection(ABC, Generic[OptionsT]):
    """A feature collection. Subclasses set the class variables and write `features`, `sources` and `label`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    options_model: ClassVar[type[Options]]
    default_pooling: ClassVar[Pooling]
    poolings: ClassVar[tuple[Pooling, ...]]
    group_unit: ClassVar[str] = "documents"
    # Whether the end of a text is what matters: longer ones lose their beginning.
    keep_end: ClassVar[bool] = False
    # Raised when this collection's own code would give other rows for the same spec.
    version: ClassVar[int] = 1

    @abstractmethod
    def features(self, options: OptionsT) -> tuple[Feature, ...]:
        """All features that these options offer, in order."""

    @abstractmethod
    def sources(self, options: OptionsT) -> tuple[Source, ...]:
        """Where the text comes from. A document's label is its class for splits and balance."""

    @abstractmethod
    def label(self, plan: Plan[OptionsT], sequences: Sequence[Sequenced], tokenizer: Tokenizer) -> Iterable[Labels]:
        """Labels of the planned features, in the plan's order; a feature may be left out if its options say so."""

    def classes_needed(self, plan: Plan[OptionsT]) -> tuple[str, ...]:
        """Labels that documents must have; a class without any text is an error."""
        return ()

    def select(self, plan: Plan[OptionsT], documents: dict[str, list[Document]]) -> dict[str, list[Document]]:
        """Classes to keep, given all that was found; those that are left out get no sequences."""
        return documents

    def resolve(self, spec: CollectionSpec) -> Plan[OptionsT]:
        """Validate a spec and fill in what it leaves open.

        Raises
        ------
        InputError
            If an option, a feature or the pooling is unknown to this collection.
        """
        try:
            options: Any = self.options_model.model_validate(dict(spec.options))
        except ValidationError as error:
            where, message = explain(error, self.options_model)
            remedy = f"`sparse-probing collections {self.name}` lists every option."
            if where in CollectionSpec.model_fields and where not in self.options_model.model_fields:
                remedy = f"{where} belongs in [[collections]], above [collections.options]."
            raise InputError(
                f"Collection {self.name}: options{'.' + where if where else ''}: {message}.", remedy=remedy
            ) from error
        offered = self.features(options)
        names = [feature.name for feature in offered]
        wanted = names if spec.features is None else list(spec.features)
        for name in wanted:
            if name not in names:
                raise InputError(
                    f"Collection {self.name} has no feature {name!r}; {choices(name, names)}.",
                    remedy="Edit features of that collection.",
                )
        if not wanted:
            raise InputError(
                f"Collection {self.name}: features is empty; it offers {', '.join(names)}.",
                remedy="Name some, or leave features out for all.",
            )
        least = max(options.min_tokens, options.skip_tokens + 1)
        if least >= spec.context_length:
            raise InputError(
                f"Collection {self.name}: context_length is {spec.context_length}, but min_tokens and skip_tokens ask for "
                f"{least} tokens of text beside special ones.",
                remedy="Raise context_length, or lower options.min_tokens or options.skip_tokens.",
            )
        pooling = spec.pooling or self.default_pooling
        if pooling not in self.poolings:
            raise InputError(
                f"Collection {self.name} with pooling {pooling!r}; its labels allow {', '.join(self.poolings)}.",
                remedy="Edit pooling of that collection, or leave it out.",
            )
        features = tuple(feature for feature in offered if feature.name in wanted)
        written_out = spec.model_copy(
            update={
                "options": options.model_dump(mode="json"),
                "features": tuple(feature.name for feature in features),
                "pooling": pooling,
            }
        )
        return Plan(written_out, options, features, pooling)

    def preflight(self, plan: Plan[OptionsT]) -> None:
        """Raise `InputError` if some text cannot be read. Reads no text."""
        for source in self.sources(plan.options):
            source.check()

    def fingerprints(self, plan: Plan[OptionsT]) -> dict[str, str]:
        """Versions and digests of everything that the text comes from."""
        found: dict[str, str] = {}
        for source in self.sources(plan.options):
            found.update(source.fingerprints())
        return dict(sorted(found.items()))

    def build(self, plan: Plan[OptionsT], tokenizer: Tokenizer, progress: Progress | None = None) -> Dataset:
        """Read, split, tokenise, label.

        Raises
        ------
        DataError
            If some class has too few groups, sequences or labels in a split.
        """
        found, skipped = self._read(plan)
        documents = self.select(plan, found)
        splits = self._split(plan, documents)
        special = special_tokens(tokenizer)
        sequences = self._sequence(plan, documents, splits, tokenizer, special, progress)
        labels = tuple(self.label(plan, sequences, tokenizer))
        return Dataset(*_drop_unlabelled(sequences, labels), special, skipped)

    def _read(self, plan: Plan[OptionsT]) -> tuple[dict[str, list[Document]], tuple[Skipped, ...]]:
        """Pieces of documents by class, each class in hash order; and what was skipped, a total for each reason."""
        options, seed = plan.options, plan.spec.seed
        heaps: dict[str, list[tuple[int, int, Document]]] = {}
        skipped: dict[tuple[str, str], Skipped] = {}
        serial = 0
        for source in self.sources(options):
            for document in source.readings(seed):
                if isinstance(document, Skipped):
                    before = skipped.setdefault((document.what, document.reason), replace(document, n=0))
                    skipped[document.what, document.reason] = replace(before, n=before.n + document.n)
                    continue
                for piece in self._pieces(plan, document):
                    serial += 1
                    heap = heaps.setdefault(piece.label, [])
                    key = order_key(seed, "document", piece.label, piece.group_id, piece.text)
                    if len(heap) < options.documents_per_class:
                        heapq.heappush(heap, (-key, serial, piece))
                    elif -key > heap[0][0]:
                        heapq.heapreplace(heap, (-key, serial, piece))
        missing = [label for label in self.classes_needed(plan) if label not in heaps] if heaps else ["any"]
        if missing:
            found = ", ".join(sorted(heaps)) or "none"
            raise DataError(
                f"Collection {self.name}: no text of class {', '.join(missing)}; found {found}."
                + "".join(f" Skipped: {total}." for total in skipped.values()),
                remedy="Check labels and paths in its options, or leave those classes out.",
            )
        documents = {
            label: [document for _, _, document in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]
            for label, heap in sorted(heaps.items())
        }
        return documents, tuple(skipped.values())

    def _pieces(self, plan: Plan[OptionsT], document: Document) -> Iterable[Document]:
        max_chars = plan.spec.context_length * CHARS_PER_TOKEN
        if self.keep_end:
            return [ending(document, max_chars)]
        n_windows = plan.options.windows_per_document
        return windows(document, max_chars=max_chars, max_windows=n_windows, seed=plan.spec.seed)

    def _split(self, plan: Plan[OptionsT], documents: Mapping[str, list[Document]]) -> dict[str, str]:
        groups: dict[str, set[str]] = {}
        for label, found in documents.items():
            for document in found:
                groups.setdefault(document.group_id, set()).add(label)
        return assign_splits(groups, plan.spec.split_fractions, seed=plan.spec.seed, unit=self.group_unit)

    def _choose(
        self, plan: Plan[OptionsT], documents: Mapping[str, list[Document]], splits: Mapping[str, str]
    ) -> list[list[Document]]:
        """One list a class and split: candidates in order of preference, a group at a time in turn, none repeated."""
        spec, options = plan.spec, plan.options
        quotas = split_quotas(options.sequences_per_class, spec.split_fractions)
        seen = NearDuplicates()
        buckets = []
        for label, found in documents.items():
            for split, quota in zip(SPLITS, quotas, strict=True):
                wanted = int(quota * SURPLUS) + 2
                mine = [document for document in found if splits[document.group_id] == split]
                bucket: list[Document] = []
                for document in _in_turn(mine):
                    if len(bucket) == wanted:
                        break
                    if seen.add(document.text):
                        bucket.append(document)
                if not bucket:
                    raise self._too_few(label, split, len(mine))
                buckets.append(bucket)
        return buckets

    def _sequence(
        self,
        plan: Plan[OptionsT],
        documents: Mapping[str, list[Document]],
        splits: Mapping[str, str],
        tokenizer: Tokenizer,
        special: SpecialTokens,
        progress: Progress | None,
    ) -> list[Sequenced]:
        buckets = self._choose(plan, documents, splits)
        quotas = split_quotas(plan.options.sequences_per_class, plan.spec.split_fractions)
        total = sum(len(bucket) for bucket in buckets)
        done = 0
        kept: list[Sequenced] = []
        for number, bucket in enumerate(buckets):
            split, quota = SPLITS[number % len(SPLITS)], quotas[number % len(SPLITS)]
            before = len(kept)
            for start in range(0, len(bucket), BATCH):
                batch = bucket[start : start + BATCH]
                encoded = encode(
                    tokenizer,
                    [item.text for item in batch],
                    context_length=plan.spec.context_length,
                    special=special,
                    keep_end=self.keep_end,
                )
                for document, tokens in zip(batch, encoded, strict=True):
                    sequenced = tokens and self._usable(plan.options, document, split, tokens)
                    if sequenced and len(kept) - before < quota:
                        kept.append(sequenced)
                done += len(batch)
                if progress is not None:
                    progress(done, total)
            if len(kept) == before:
                raise self._too_few(bucket[0].label, split, len(bucket))
        kept.sort(key=lambda item: order_key(plan.spec.seed, "sequence", item.document.label, item.document.text))
        return kept

    def _usable(self, options: OptionsT, document: Document, split: str, tokens: TokenSequence) -> Sequenced | None:
        length = tokens.text_end - tokens.text_start
        if length < max(options.min_tokens, options.skip_tokens + 1):
            return None
        return Sequenced(document, split, tokens, tokens.text_start + options.skip_tokens, tokens.text_end)

    def _too_few(self, label: str, split: str, n_found: int) -> DataError:
        return DataError(
            f"Collection {self.name}: class {label!r} has no usable text in {split} ({n_found} found, but too short, "
            "repeated elsewhere, or holding special tokens).",
            remedy="Add text of that class, lower options.min_tokens, or use another seed.",
        )


def _in_turn(documents: Sequence[Document]) -> list[Document]:
    """Documents so that groups take turns; the order within a group, and of groups by their first, is kept."""
    turns: dict[str, int] = {}
    keyed = []
    for number, document in enumerate(documents):
        turn = turns.get(document.group_id, 0)
        turns[document.group_id] = turn + 1
        keyed.append((turn, number, document))
    return [document for _, _, document in sorted(keyed, key=lambda entry: entry[:2])]


def _drop_unlabelled(
    sequences: Sequence[Sequenced], labels: Sequence[Labels]
) -> tuple[tuple[Sequenced, ...], tuple[Labels, ...]]:
    used = np.unique(np.concatenate([part.sequence for part in labels]))
    if len(used) == len(sequences):
        return tuple(sequences), tuple(labels)
    renumbered = tuple(
        Labels(part.feature, np.searchsorted(used, part.sequence), part.position, part.values) for part in labels
    )
    return tuple(sequences[int(index)] for index in used), renumbered
