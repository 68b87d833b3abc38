"""Who goes where and what is kept: splits by group, near-duplicates, balanced samples.

Everything here is decided by hashes of the seed and of the things themselves, so the order in which they come never
matters. No text is read and no file is written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_probing.config import SPLITS
from sparse_probing.errors import DataError

SHINGLE_CHARS = 12
SHINGLE_SHARE = 4
DUPLICATE_CONTAINMENT = 0.5


def order_key(seed: int, *parts: Hashable) -> int:
    """A 64-bit number that a seed and some strings or integers decide: sort by it to shuffle."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_quotas(n: int, fractions: Sequence[float]) -> tuple[int, ...]:
    """Share `n` things by fractions (largest remainder), at least one for each part where n allows."""
    exact = [n * fraction for fraction in fractions]
    counts = [math.floor(part + 1e-9) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: n - sum(counts)]:
        counts[index] += 1
    while n >= len(counts) and min(counts) == 0:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return tuple(counts)


def assign_splits(
    groups: Mapping[str, Iterable[str]], fractions: Sequence[float], *, seed: int, unit: str = "groups"
) -> dict[str, str]:
    """Give each group one split, so that every class has groups in train, validation and test.

    Parameters
    ----------
    groups:
        Group to the classes of its documents.
    fractions:
        Shares of train, validation and test, of each class's groups.
    unit:
        What a group is, for messages.

    Raises
    ------
    DataError
        If some class has fewer groups than splits, or shares them so that no assignment was found.
    """
    members: dict[str, list[str]] = {}
    for group, classes in groups.items():
        for label in set(classes):
            members.setdefault(label, []).append(group)
    for label, names in sorted(members.items()):
        if len(names) < len(SPLITS):
            raise DataError(
                f"Class {label!r} has {len(names)} {unit}; at least {len(SPLITS)} are needed, one each for "
                f"{', '.join(SPLITS)}.",
                remedy=f"Add {unit} of that class, or leave the class out.",
            )
    assigned: dict[str, str] = {}
    for label in sorted(members, key=lambda name: (len(members[name]), name)):
        names = members[label]
        missing = list(split_quotas(len(names), fractions))
        for group in names:
            if group in assigned:
                missing[SPLITS.index(assigned[group])] -= 1
        for group in sorted((g for g in names if g not in assigned), key=lambda g: order_key(seed, "split", g)):
            index = max(range(len(SPLITS)), key=lambda i: (missing[i], -i))
            assigned[group] = SPLITS[index]
            missing[index] -= 1
        empty = set(SPLITS) - {assigned[group] for group in names}
        if empty:
            raise DataError(
                f"Class {label!r}: its {len(names)} {unit} are shared with other classes and leave none for "
                f"{', '.join(sorted(empty))}.",
                remedy=f"Add {unit} that hold this class alone, or use another seed.",
            )
    return assigned


class NearDuplicates:
    """Remembers texts and recognises those that repeat one of them.

    Two texts count as the same if at least half of the shorter one's character 12-grams (letters and digits only, case
    folded; a quarter of them, sampled by hash) occur in the other: containment, after Broder 1997, "On the resemblance
    and containment of documents", section 2.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._seen: dict[int, list[int]] = {}
        self._exact: set[bytes] = set()

    def add(self, text: str) -> bool:
        """Remember a text and return True; return False if it repeats one that is remembered."""
        plain = "".join(char for char in text.casefold() if char.isalnum()) or text.strip()
        fingerprint = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if fingerprint in self._exact:
            return False
        shingles = _shingles(plain)
        shared: dict[int, int] = {}
        for shingle in shingles:
            for index in self._seen.get(shingle, ()):
                shared[index] = shared.get(index, 0) + 1
        for index, count in shared.items():
            if count >= DUPLICATE_CONTAINMENT * min(len(shingles), self._sizes[index]):
                return False
        self._exact.add(fingerprint)
        self._sizes.append(len(shingles))
        for shingle in shingles:
            self._seen.setdefault(shingle, []).append(len(self._sizes) - 1)
        return True


def _shingles(plain: str) -> list[int]:
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(points) < SHINGLE_CHARS:
        return []
    with np.errstate(over="ignore"):
        powers = np.uint64(0x100000001B3) ** np.arange(SHINGLE_CHARS, dtype=np.uint64)
        hashes = np.lib.stride_tricks.sliding_window_view(points, SHINGLE_CHARS) @ powers
        mixed = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    kept: list[int] = np.unique(mixed[(mixed >> np.uint64(40)) % np.uint64(SHINGLE_SHARE) == 0]).tolist()
    return kept


@dataclass(frozen=True)
class RowSample:
    """Which rows of a table of candidates each feature labels.

    Attributes
    ----------
    rows:
        (n_features) arrays of row indices, sorted.
    """

    rows: tuple[NDArray[np.int64], ...]


def sample_rows(
    positive: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    split: NDArray[np.int64],
    priority: NDArray[np.uint64],
    *,
    features: Sequence[str],
    max_rows: int,
    fractions: Sequence[float],
    floor: float,
) -> RowSample:
    """Choose rows so that features share most of them and each has enough positives.

    In each split one random sample serves all features: the rows of lowest priority. A feature whose positives fall
    under `floor` there gets its own next positives on top; where those run out, it labels fewer negatives. So every
    feature's positives are a random sample of its positives, and its negatives of its negatives.

    Parameters
    ----------
    positive, allowed:
        (n_rows, n_features): the label, and whether the feature may label that row at all.
    split:
        (n_rows,) index into `SPLITS`.
    priority:
        (n_rows,) random numbers, the lower the sooner; ties go to the earlier row.
    max_rows:
        Distinct rows over all features, at most.
    fractions:
        Share of the rows for each split.
    floor:
        Least share of positives, between 0 and 1.

    Raises
    ------
    DataError
        If a feature has no positive or no negative row in some split.
    """
    chosen: list[list[NDArray[np.int64]]] = [[] for _ in features]
    for index, quota in enumerate(split_quotas(max_rows, fractions)):
        rows = np.flatnonzero(split == index)
        rows = rows[np.argsort(priority[rows], kind="stable")]
        part = _Part(positive[rows], allowed[rows], floor)
        low, high = 0, min(quota, len(rows))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if part.n_rows(middle) <= quota else (low, middle - 1)
        for number, kept in enumerate(part.choose(low)):
            labels = part.positive[kept, number]
            for found, what in ((labels.any(), "positive"), ((~labels).any(), "negative")):
                if not found:
                    raise DataError(
                        f"Feature {features[number]!r} has no {what} row in {SPLITS[index]} "
                        f"({len(rows)} positions, {quota} rows wanted).",
                        remedy="Give the collection more or other text, raise options.max_rows, or leave the feature out.",
                    )
            chosen[number].append(rows[kept])
    return RowSample(tuple(np.sort(np.concatenate(parts)) for parts in chosen))


@dataclass(frozen=True)
class _Part:
    """One split's candidates, in order of priority."""

    positive: NDArray[np.bool_]
    allowed: NDArray[np.bool_]
    floor: float

    def choose(self, n_shared: int) -> list[NDArray[np.int64]]:
        ratio = self.floor / (1 - self.floor)
        chosen = []
        for number in range(self.positive.shape[1]):
            usable = self.allowed[:, number]
            is_positive = self.positive[:, number] & usable
            positives = np.flatnonzero(is_positive)
            negatives = np.flatnonzero(usable[:n_shared] & ~is_positive[:n_shared])
            needed = math.ceil(ratio * len(negatives))
            positives = positives[: max(int(is_positive[:n_shared].sum()), needed)]
            if ratio:
                negatives = negatives[: math.floor(len(positives) / ratio + 1e-9)]
            chosen.append(np.concatenate([positives, negatives]).astype(np.int64))
        return chosen

    def n_rows(self, n_shared: int) -> int:
        return len(np.unique(np.concatenate(self.choose(n_shared)))) if self.positive.shape[1] else 0


def random_positions(first: int, last: int, n: int, *, seed: int, key: Sequence[Any]) -> NDArray[np.int64]:
    """At most `n` distinct positions of [first, last), sorted, decided by the seed and the key."""
    order = sorted(range(first, last), key=lambda position: order_key(seed, "position", *key, position))
    return np.array(sorted(order[:n]), dtype=np.int64)
