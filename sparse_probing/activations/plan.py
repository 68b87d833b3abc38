"""What to extract, in which order: rows, shards and batches, decided before the model runs.

The plan follows from the dataset, the shape of the model and the spec's tokens and positions alone, never from time or
memory, nor from which hooks, layers and neurons are kept; activations depend on which sequences share a batch, so a fixed
plan is needed for a resumed run to equal an uninterrupted one, and several hooks in one pass to equal each alone. No model
runs here, and no activation is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparse_probing import schemas
from sparse_probing.activations.pooling import pooled_range
from sparse_probing.config import Pooling
from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import Manifest, read_manifest
from sparse_probing.store.parquet import read_table

if TYPE_CHECKING:
    from torch import nn

    from sparse_probing.models.resolved import ResolvedModel

# Raised when the same inputs would be cut in another way.
PLAN_VERSION = 2
# A shard's rows stay below this at one byte for each MLP neuron of the model (a shard has at least one sequence).
SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Selection:
    """Which positions become rows. One entry per row; row i of an extraction is entry i.

    Attributes
    ----------
    pooling:
        ``none`` and ``last``: a row is the one position ``stop - 1``; ``mean`` and ``max``: it is ``[start, stop)``.
    sequence:
        (n_rows,) index of the row's sequence, ascending.
    start, stop:
        (n_rows,) positions in the unpadded sequence.

    Examples
    --------
    Tokens 2 and 3 of the first sequence, token 1 of the second, each a row:

    >>> import numpy as np
    >>> from sparse_probing import Selection
    >>> at = np.array([2, 3, 1])
    >>> rows = Selection("none", sequence=np.array([0, 0, 1]), start=at, stop=at + 1)
    >>> len(rows)
    3
    """

    pooling: Pooling
    sequence: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sequence)

    def rows_of(self, sequence: int) -> slice:
        """Rows of one sequence."""
        first, last = np.searchsorted(self.sequence, [sequence, sequence + 1])
        return slice(int(first), int(last))


@dataclass(frozen=True)
class Shard:
    """Sequences that are extracted together and finished together.

    Attributes
    ----------
    index:
        Its number: that of its files.
    sequences:
        Indices of its sequences, ascending.
    n_rows, n_tokens:
        Rows to store and tokens to run, padding not counted.
    is_training:
        Whether all of its sequences are training sequences.
    """

    index: int
    sequences: NDArray[np.int64]
    n_rows: int
    n_tokens: int
    is_training: bool


@dataclass(frozen=True)
class Corpus:
    """A finished dataset as extraction sees it: sequences that have rows, and those rows.

    `tokens` is flat; sequence i is ``tokens[bounds[i]:bounds[i + 1]]``.
    """

    digest: str
    pooling: Pooling
    tokens: NDArray[np.int32]
    bounds: NDArray[np.int64]
    is_training: NDArray[np.bool_]
    selection: Selection
    rows: pa.Table

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence."""
        return np.diff(self.bounds)

    def sequence(self, index: int) -> NDArray[np.int32]:
        """Tokens of one sequence."""
        return self.tokens[self.bounds[index] : self.bounds[index + 1]]


def read_corpus(
    folder: Location,
    *,
    bos_token_id: int | None,
    next_token: bool = False,
    positions: Literal["labelled", "all"] = "labelled",
) -> Corpus:
    """Read a finished dataset and decide its rows.

    Pooling ``none`` gives one row per distinct labelled (seq_id, position), any other one row per labelled sequence; in
    order of seq_id and position. Sequences without a label are left out.

    Parameters
    ----------
    next_token:
        Read the activation one position before that of the row. Labels of a first position then have no row.
    positions:
        ``all``: every position that pooling could use of every sequence is a row, labelled or not (pooling none).

    Raises
    ------
    ArtifactError
        If the dataset is unfinished or damaged, or a label names a sequence or position that is not there.
    """
    manifest = read_manifest(folder)
    pooling = _pooling(folder, manifest)
    table = _read(folder, manifest, "sequences.parquet", ["seq_id", "group_id", "split", "tokens", *_RANGE])
    labels = _read(folder, manifest, "labels.parquet", ["seq_id", "position"])
    order = np.argsort(table.column("seq_id").to_numpy(), kind="stable")
    seq_ids = table.column("seq_id").to_numpy()[order]
    if next_token and pooling != "none":
        raise InputError(
            f"next_token is for single positions; {folder} is pooled by {pooling}.",
            remedy="Leave extraction.next_token out, or build the dataset with pooling none.",
        )
    if positions == "all" and pooling == "none":
        wanted, places = _poolable(table, bos_token_id)
    else:
        wanted, places = _labelled(folder, labels, pooling)
    if next_token:
        wanted, places = wanted[places > 0], places[places > 0]
    if not len(wanted):
        raise ArtifactError(f"{folder} has no row to extract.", remedy="Build a dataset with labels.")
    where = np.searchsorted(seq_ids, wanted)
    if len(seq_ids) == 0 or (seq_ids[np.minimum(where, len(seq_ids) - 1)] != wanted).any():
        raise ArtifactError(
            f"{folder}: a label names a sequence that is not there.", remedy="Delete the dataset and build it again."
        )
    kept, sequence = np.unique(where, return_inverse=True)
    table = table.take(pa.array(order[kept]))
    flat = pa.chunked_array(table.column("tokens")).combine_chunks()
    tokens, bounds = flat.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], np.cumsum(_sizes(flat))])
    if pooling == "none":
        start, stop = (places - 1, places) if next_token else (places, places + 1)
        if (places < 0).any() or (places >= np.diff(bounds)[sequence]).any():
            raise ArtifactError(
                f"{folder}: a label lies outside of its sequence.", remedy="Delete the dataset and build it again."
            )
    else:
        first, last = (table.column(name).to_numpy() for name in _RANGE)
        ranges = [
            pooled_range(tokens[bounds[i] : bounds[i + 1]], int(first[i]), int(last[i]), bos_token_id=bos_token_id)
            for i in range(len(kept))
        ]
        pairs = np.array(ranges, dtype=np.int64).reshape(-1, 2)[sequence]
        start, stop = pairs[:, 0], pairs[:, 1]
    rows = pa.table(
        {
            "row_id": pa.array(np.arange(len(sequence)), pa.int64()),
            "seq_id": pa.array(wanted, pa.int64()),
            "position": pa.array(places, pa.int32()) if pooling == "none" else pa.nulls(len(sequence), pa.int32()),
            "group_id": table.column("group_id").take(pa.array(sequence)),
            "split": table.column("split").take(pa.array(sequence)),
        },
    ).cast(schemas.ROWS)
    return Corpus(
        digest=manifest.digest,
        pooling=pooling,
        tokens=tokens,
        bounds=bounds.astype(np.int64),
        is_training=pc.equal(table.column("split"), "train").to_numpy(),
        selection=Selection(pooling, sequence.astype(np.int64), start.astype(np.int64), stop.astype(np.int64)),
        rows=rows,
    )


def plan_row_bytes(model: nn.Module, resolved: ResolvedModel | None) -> int:
    """Bytes of a row of all MLP neurons of a model, one byte each: what `plan_shards` cuts by.

    It is the same whatever is kept, so that all extractions of a model from a dataset have one plan, and can share passes.
    """
    if resolved is not None and resolved.n_layers * resolved.n_neurons:
        return resolved.n_layers * resolved.n_neurons
    names = ("num_hidden_layers", "hidden_size")
    n_layers, width = (getattr(getattr(model, "config", None), name, 0) for name in names)
    return 4 * int(n_layers or 0) * int(width or 0)


def plan_shards(corpus: Corpus, *, shard_tokens: int, row_bytes: int) -> list[Shard]:
    """Cut a corpus into shards of about `shard_tokens` tokens and at most `SHARD_BYTES`.

    Training sequences come first, in an order drawn from the dataset's digest: so the first shards, from which
    quantisation ranges are taken, are a random sample of training text and hold nothing else.

    Parameters
    ----------
    row_bytes:
        Bytes counted for a row: the same for all extractions of a model, whatever they keep.
    """
    training = np.flatnonzero(corpus.is_training)
    np.random.default_rng(int(corpus.digest[:16], 16)).shuffle(training)
    n_rows = np.bincount(corpus.selection.sequence, minlength=len(corpus.lengths))
    shards: list[Shard] = []
    for sequences, is_training in ((training, True), (np.flatnonzero(~corpus.is_training), False)):
        current: list[int] = []
        tokens = rows = 0
        for sequence in sequences:
            length, count = int(corpus.lengths[sequence]), int(n_rows[sequence])
            if current and (tokens + length > shard_tokens or (rows + count) * row_bytes > SHARD_BYTES):
                shards.append(Shard(len(shards), np.sort(np.array(current)), rows, tokens, is_training))
                current, tokens, rows = [], 0, 0
            current.append(int(sequence))
            tokens, rows = tokens + length, rows + count
        if current:
            shards.append(Shard(len(shards), np.sort(np.array(current)), rows, tokens, is_training))
    return shards


def plan_batches(
    lengths: NDArray[np.int64], batch_tokens: int, *, equal_lengths: bool = False
) -> list[NDArray[np.int64]]:
    """Cut sequences into batches of similar length (of one length each): indices into `lengths`, longest batches first.

    A batch has at most `batch_tokens` tokens, padding included, or a single sequence. The longest come first, so that
    a batch that does not fit into memory shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[NDArray[np.int64]] = []
    first = 0
    while first < len(order):
        longest = int(lengths[order[first]])
        size = max(1, batch_tokens // max(1, longest))
        batch = order[first : first + size]
        if equal_lengths:
            batch = batch[lengths[batch] == longest]
        batches.append(batch)
        first += len(batch)
    return batches


def calibration_shards(shards: list[Shard], n_rows: int) -> list[Shard]:
    """The first training shards that together hold at most `n_rows` rows; the first one in any case."""
    chosen: list[Shard] = []
    total = 0
    for shard in shards:
        total += shard.n_rows
        if not shard.is_training or (chosen and total > n_rows):
            break
        chosen.append(shard)
    return chosen


_RANGE = ["pool_start", "pool_end"]


def _read(folder: Location, manifest: Manifest, name: str, columns: list[str]) -> pa.Table:
    if name not in manifest.files:
        raise ArtifactError(f"{folder} holds no {name}.", remedy="Delete the dataset and build it again.")
    return read_table(folder / name, columns=columns, entry=manifest.files[name])


def _pooling(folder: Location, manifest: Manifest) -> Pooling:
    pooling = manifest.facts.get("pooling")
    if pooling not in ("none", "mean", "max", "last"):
        raise ArtifactError(
            f"{folder}: pooling is {pooling!r}; expected none, mean, max or last.",
            remedy="Delete the dataset and build it again.",
        )
    found: Pooling = pooling
    return found


def _labelled(folder: Location, labels: pa.Table, pooling: Pooling) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct labelled (seq_id, position), in order; position is −1 for whole sequences."""
    n_null = labels.column("position").null_count
    if pooling == "none" and n_null:
        raise ArtifactError(
            f"{folder}: {n_null} labels have no position, but its pooling is none.",
            remedy="Build the dataset with pooling mean, max or last, or label positions.",
        )
    seq_ids = labels.column("seq_id").to_numpy().astype(np.int64)
    if pooling != "none":
        seq_ids = np.unique(seq_ids)
        return seq_ids, np.full(len(seq_ids), -1, dtype=np.int64)
    pairs = np.stack([seq_ids, labels.column("position").to_numpy().astype(np.int64)], axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    fresh = np.ones(len(pairs), dtype=bool)
    fresh[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[fresh, 0], pairs[fresh, 1]


def _poolable(table: pa.Table, bos_token_id: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every (seq_id, position) that the mask rule lets count, in order."""
    seq_ids, places = [], []
    for row in table.select(["seq_id", "tokens", *_RANGE]).sort_by("seq_id").to_batches(1024):
        columns = [row.column(i) for i in range(4)]
        for seq_id, tokens, first, last in zip(*columns, strict=True):
            start, end = pooled_range(np.asarray(tokens.values), first.as_py(), last.as_py(), bos_token_id=bos_token_id)
            places.append(np.arange(start, end))
            seq_ids.append(np.full(end - start, seq_id.as_py()))
    return np.concatenate(seq_ids).astype(np.int64), np.concatenate(places).astype(np.int64)


def _sizes(lists: pa.ListArray) -> NDArray[np.int64]:
    sizes: NDArray[np.int64] = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return sizes
