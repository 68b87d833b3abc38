"""The positions at which each neuron is most active, from a stream of activations, and the text around them.

Fixed memory: it grows with neurons and contexts kept, never with rows. Activation and row id share one integer, whose
order is that of the ranking: the n largest are the same however the rows are cut into batches, and on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from sparse_probing import schemas
from sparse_probing.activations.plan import Corpus
from sparse_probing.errors import DataError, InputError
from sparse_probing.neurons.statistics import check_finite

# A key is the activation as an ordered integer (upper half) and the row id counted down (lower half).
_LOWER = (1 << 32) - 1
_EMPTY = torch.iinfo(torch.int64).min
_SIGN = 0x7FFFFFFF


@dataclass(frozen=True, eq=False)
class TopContexts:
    """The most active rows of every neuron, by activation falling, equal ones by row id rising.

    Attributes
    ----------
    values:
        (n_layers, n_neurons, n) float32 activations; NaN past the last row where there were fewer than n.
    rows:
        (n_layers, n_neurons, n) int64 row ids; −1 there.
    sequences:
        (n_layers, n_neurons, n) int64 sequences of those rows; −1 there.
    one_per_sequence:
        Whether a sequence may occur only once for a neuron, with its best row.
    """

    values: NDArray[np.float32]
    rows: NDArray[np.int64]
    sequences: NDArray[np.int64]
    one_per_sequence: bool

    def merge(self, other: TopContexts) -> TopContexts:
        """The contexts of both parts together: what one pass over all of their rows would have kept.

        Row ids and sequences must mean the same in both; a row that is in both counts once.

        Raises
        ------
        InputError
            If the two have other neurons, another n, or another rule for sequences.
        """
        if self.values.shape != other.values.shape or self.one_per_sequence != other.one_per_sequence:
            raise InputError(
                f"Contexts of {self.values.shape} and {other.values.shape} (layers, neurons, n), one per sequence "
                f"{self.one_per_sequence} and {other.one_per_sequence}, cannot be merged.",
                remedy="Collect all parts in the same way.",
            )
        keys = torch.cat([_join(part.values, part.rows) for part in (self, other)], dim=-1)
        # Without the rule a row stands for itself, so that one that is in both parts still counts once.
        owners = [part.sequences if self.one_per_sequence else part.rows for part in (self, other)]
        merged, at = _best(keys, torch.from_numpy(np.concatenate(owners, axis=-1)), self.values.shape[-1])
        sequences = np.take_along_axis(np.concatenate([self.sequences, other.sequences], axis=-1), at.numpy(), axis=-1)
        return _split(merged, torch.from_numpy(sequences), self.one_per_sequence)


class ContextCollector:
    """Collects `TopContexts` from batches in any order, on the device where the batches are.

    Parameters
    ----------
    n:
        Contexts to keep for each neuron.
    one_per_sequence:
        Keep only the best row of a sequence, so that one document cannot fill the list.
    """

    def __init__(
        self, n_layers: int, n_neurons: int, n: int = 25, *, one_per_sequence: bool = True, device: str = "cpu"
    ) -> None:
        if min(n_layers, n_neurons, n) < 1:
            raise InputError(f"{n} contexts of {n_layers} × {n_neurons} neurons; expected at least one of each.")
        self._one_per_sequence = one_per_sequence
        self._keys = torch.full((n_layers, n_neurons, n), _EMPTY, dtype=torch.int64, device=device)
        self._sequences = torch.full_like(self._keys, -1)

    @torch.inference_mode()
    def update(self, values: torch.Tensor, rows: NDArray[np.int64], sequences: NDArray[np.int64]) -> None:
        """Take in a batch.

        Parameters
        ----------
        values:
            (n_layers, n_rows, n_neurons) activations.
        rows, sequences:
            (n_rows,) row id, each given once in all, and sequence of each row.

        Raises
        ------
        DataError
            If shapes do not fit, a row id is outside of [0, 2³² − 1), or an activation is not a finite number.
        """
        n_layers, n_neurons, n = self._keys.shape
        shape = (n_layers, len(rows), n_neurons)
        if tuple(values.shape) != shape or len(sequences) != len(rows):
            raise DataError(
                f"Activations of shape {tuple(values.shape)} with {len(rows)} row ids and {len(sequences)} sequences; "
                f"expected {shape} and as many of each."
            )
        if not len(rows):
            return
        if rows.min() < 0 or rows.max() >= _LOWER:
            raise DataError(f"Row ids from {rows.min()} to {rows.max()}; expected 0 to {_LOWER - 1}.")
        check_finite(values)
        device = self._keys.device
        distinct, owner = np.unique(sequences if self._one_per_sequence else rows, return_inverse=True)
        first = np.unique(owner, return_index=True)[1]
        at, groups = torch.from_numpy(owner).to(device), torch.from_numpy(sequences[first]).to(device)
        ids = torch.from_numpy(rows).to(device)
        for layer in range(n_layers):
            exact = values[layer].float()
            highest = exact.amax(dim=0)
            # A neuron whose best row does not reach the last one kept stays as it is: soon that is most of them.
            open_to = torch.nonzero(highest >= _values(self._keys[layer, :, -1]).nan_to_num(-torch.inf)).squeeze(1)
            if not len(open_to):
                continue
            keys = _keys(exact[:, open_to].T, ids)
            if len(distinct) < len(rows):
                reduced = torch.full((len(open_to), len(distinct)), _EMPTY, dtype=torch.int64, device=device)
                keys = reduced.scatter_reduce_(1, at.expand(len(open_to), -1), keys, "amax")
            else:
                keys = torch.empty_like(keys).scatter_(1, at.expand(len(open_to), -1), keys)
            keys, chosen = torch.topk(keys, min(n, len(distinct)), dim=-1)
            keys = torch.cat([self._keys[layer, open_to], keys], dim=-1)
            found = torch.cat([self._sequences[layer, open_to], groups[chosen]], dim=-1)
            keys, place = _best(keys, found if self._one_per_sequence else None, n)
            self._keys[layer, open_to], self._sequences[layer, open_to] = keys, found.gather(-1, place)

    def result(self) -> TopContexts:
        """The contexts of everything taken in so far."""
        return _split(self._keys.cpu(), self._sequences.cpu().clone(), self._one_per_sequence)


def context_table(
    contexts: TopContexts,
    corpus: Corpus,
    tokenizer: Any,
    *,
    layers: Sequence[int] | None = None,
    neurons: Sequence[tuple[int, int]] | None = None,
    window: int = 12,
) -> pa.Table:
    """Contexts as text: one row per neuron and context, schema `NEURON_CONTEXTS`.

    `token` is the text of the token at which the activation was read, or of the whole range of a row pooled by mean or
    max (its first 2·window + 1 tokens); `before` and `after` are up to `window` tokens before and after that.

    Parameters
    ----------
    contexts:
        Collected from this corpus.
    tokenizer:
        The model's; only `decode` is used.
    layers:
        What the model calls the layers of `contexts`; 0, 1, … if absent.
    neurons:
        (layer, neuron) pairs to include; all if absent, which decodes one text for every distinct row.

    Raises
    ------
    InputError
        If a neuron is not there, or the contexts have rows that the corpus has not.
    """
    n_layers, n_neurons, _ = contexts.values.shape
    names = tuple(range(n_layers)) if layers is None else tuple(layers)
    wanted = [(layer, neuron) for layer in names for neuron in range(n_neurons)] if neurons is None else list(neurons)
    strange = [(layer, neuron) for layer, neuron in wanted if layer not in names or not 0 <= neuron < n_neurons]
    if strange:
        raise InputError(
            f"Layer and neuron {strange[0]} asked for; there are layers {names} of {n_neurons} neurons.",
            remedy="Ask for neurons that were collected.",
        )
    if len(names) != n_layers or contexts.rows.max() >= len(corpus.selection):
        raise InputError(
            f"Contexts of {n_layers} layers and rows up to {contexts.rows.max()}, with {len(names)} names of layers and a "
            f"corpus of {len(corpus.selection)} rows.",
            remedy="Give the layers and the corpus that the contexts were collected from.",
        )
    at = np.array([(names.index(layer), neuron) for layer, neuron in wanted], dtype=np.int64).reshape(-1, 2)
    rows = contexts.rows[at[:, 0], at[:, 1]]
    kept = rows >= 0
    which, rank = np.nonzero(kept)
    rows = rows[kept]
    texts = {int(row): _text(corpus, tokenizer, int(row), window) for row in np.unique(rows)}
    single = corpus.pooling in ("none", "last")
    position = corpus.selection.stop[rows] - 1
    pairs = np.array(wanted, dtype=np.int32).reshape(-1, 2)[which]
    columns: dict[str, Any] = {
        "layer": pairs[:, 0],
        "neuron": pairs[:, 1],
        "rank": (rank + 1).astype(np.int32),
        "activation": contexts.values[at[:, 0], at[:, 1]][kept],
        "row_id": rows,
        "seq_id": corpus.rows.column("seq_id").to_numpy()[rows],
        "position": pa.array(position, pa.int32()) if single else pa.nulls(len(rows), pa.int32()),
    }
    for index, name in enumerate(("before", "token", "after")):
        columns[name] = pa.array([texts[int(row)][index] for row in rows], pa.string())
    return pa.table(columns).cast(schemas.NEURON_CONTEXTS)


def _text(corpus: Corpus, tokenizer: Any, row: int, window: int) -> tuple[str, str, str]:
    """Text before, at and after a row.

    Longer and longer parts are decoded from the same start, and the longer one's end is what came in between: tokenizers
    treat the first token of a text in a way of their own.
    """
    selection = corpus.selection
    tokens = corpus.sequence(int(selection.sequence[row])).tolist()
    stop = int(selection.stop[row])
    start = stop - 1 if corpus.pooling in ("none", "last") else int(selection.start[row])
    first, end = max(0, start - window), min(stop, start + 2 * window + 1)
    parts: list[str] = []
    whole = ""
    for low, high in ((first, start), (start, end), (end, end + window)):
        longer = _decode(tokenizer, tokens[first:high])
        # Bytes of one character in two parts decode to something else together than apart.
        parts.append(longer[len(whole) :] if longer.startswith(whole) else _decode(tokenizer, tokens[low:high]))
        whole = longer
    return parts[0], parts[1], parts[2]


def _decode(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _keys(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Keys of float32 values and row ids that broadcast with them; adding 0 makes the two zeros one."""
    bits = (values + 0.0).contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & _SIGN)
    return (ordered.long() << 32) + (_LOWER - rows)


def _values(keys: torch.Tensor) -> torch.Tensor:
    """Activations of keys; NaN for empty ones."""
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & _SIGN)).view(torch.float32)


def _best(keys: torch.Tensor, owners: torch.Tensor | None, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n largest keys, at most one of each owner, and where they were."""
    keys, place = keys.sort(dim=-1, descending=True)
    if owners is not None:
        grouped, order = owners.gather(-1, place).sort(dim=-1, stable=True)
        again = torch.zeros_like(grouped, dtype=torch.bool)
        again[..., 1:] = grouped[..., 1:] == grouped[..., :-1]
        keys = keys.masked_fill(torch.zeros_like(again).scatter_(-1, order, again), _EMPTY)
    best, chosen = torch.topk(keys, n, dim=-1)
    return best, place.gather(-1, chosen)


def _join(values: NDArray[np.float32], rows: NDArray[np.int64]) -> torch.Tensor:
    keys = _keys(torch.from_numpy(values), torch.from_numpy(rows))
    return keys.masked_fill(torch.from_numpy(rows < 0), _EMPTY)


def _split(keys: torch.Tensor, sequences: torch.Tensor, one_per_sequence: bool) -> TopContexts:
    empty = keys == _EMPTY
    return TopContexts(
        values=_values(keys).masked_fill(empty, torch.nan).numpy(),
        rows=(_LOWER - (keys & _LOWER)).masked_fill(empty, -1).numpy(),
        sequences=sequences.masked_fill(empty, -1).numpy(),
        one_per_sequence=one_per_sequence,
    )
