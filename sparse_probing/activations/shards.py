"""Shards on disk: layer files, the markers that say a shard is finished, and what is staged until ranges are known.

A shard is finished when its marker has been renamed into place; a marker is written after every file that it names.
Markers and staged files are temporary: they are removed when the manifest is in place, and remains of them after a crash
at that moment do no harm. No model runs here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from sparse_probing import schemas
from sparse_probing.activations.columns import Columns
from sparse_probing.activations.quantisation import Ranges, ranges_from_extremes
from sparse_probing.errors import DamageError
from sparse_probing.store.filesystem import TEMPORARY_PREFIX, Location
from sparse_probing.store.manifests import FileEntry
from sparse_probing.store.matrices import layer_folder, pack_rows, part_name, unpack_rows
from sparse_probing.store.parquet import read_table, write_table

# Chosen by measurement: decision note 0002.
COMPRESSION, COMPRESSION_LEVEL = "zstd", 1
_STAGING, _MARKERS = "_staging", "_shards"

_LOSSES = pa.schema(
    [
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("neuron", pa.int32(), nullable=False),
        pa.field("n_clipped", pa.int64(), nullable=False),
        pa.field("max_error", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Losses:
    """Errors and clipping from quantisation: arrays of the shape of `Columns`."""

    n_clipped: NDArray[np.int64]
    max_error: NDArray[np.float32]


@dataclass(frozen=True)
class Marker:
    """What a finished shard left: its files, how it was run, and how long that took."""

    files: Mapping[str, FileEntry]
    batch_tokens: int
    seconds: float

    def to_json(self) -> bytes:
        """As stored."""
        files = {name: entry.model_dump() for name, entry in self.files.items()}
        return json.dumps({"files": files, "batch_tokens": self.batch_tokens, "seconds": self.seconds}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Marker:
        """As read back."""
        raw = json.loads(data)
        files = {name: FileEntry.model_validate(entry) for name, entry in raw["files"].items()}
        return cls(files=files, batch_tokens=int(raw["batch_tokens"]), seconds=float(raw["seconds"]))


class ShardStore:
    """The working files of one extraction, in the folder of the artifact that it will become.

    Parameters
    ----------
    folder:
        The artifact's folder.
    columns:
        Layers and neurons stored.
    rows:
        All rows of the extraction (schema `ROWS`).
    """

    def __init__(self, folder: Location, columns: Columns, rows: pa.Table) -> None:
        self.folder = folder
        self.columns = columns
        self.rows = rows
        # Of files in an object store that this process wrote or saw listed.
        self._sizes: dict[str, int] = {}

    def finished(self, shard: int, *, staged: bool = False) -> Marker | None:
        """The marker of a finished shard; None if none can be read, or one of its files is not as long as it says."""
        try:
            marker = Marker.from_json(self._marker(shard, staged).read_bytes())
        except (DamageError, ValueError, KeyError, TypeError):
            return None
        if self.folder.is_object_store:
            return marker if self._has_listed(marker, staged) else None
        base = self._base(staged)
        for name, entry in marker.files.items():
            if not (base / name).exists() or (base / name).size_bytes() != entry.size_bytes:
                return None
        return marker

    def _has_listed(self, marker: Marker, staged: bool) -> bool:
        """Whether all files of a marker are there; asks an object store for the whole folder at once, and only for what is new."""
        paths = {self._path(name, staged): entry.size_bytes for name, entry in marker.files.items()}
        if not paths.keys() <= self._sizes.keys():
            self._sizes = {name: info.size for name, info in self.folder.inside().items()}
        return all(self._sizes.get(path) == size for path, size in paths.items())

    @staticmethod
    def _path(name: str, staged: bool) -> str:
        return f"{_STAGING}/{name}" if staged else name

    def write_shard(
        self,
        shard: int,
        row_ids: NDArray[np.int64],
        layer_codes: Callable[[int], NDArray[Any]],
        *,
        batch_tokens: int,
        seconds: Callable[[], float],
        staged: bool = False,
        losses: Callable[[], Losses] | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Write one shard: a file for each layer, the losses, and last its marker.

        Parameters
        ----------
        row_ids:
            (n_rows,) in the order in which the codes come; files are ordered by row_id.
        layer_codes:
            Index of a layer to the (n_rows, n_neurons) codes of its stored neurons.
        losses:
            Asked for once the layers are written; None where nothing was quantised.
        executor:
            Where layers are written side by side; in turn if None.
        """
        order = np.argsort(row_ids, kind="stable")
        ids = row_ids[order]
        keys = self.rows.select(["row_id", "seq_id", "position"]).take(pa.array(ids))
        base = self._base(staged)

        def write(index: int) -> tuple[str, FileEntry]:
            codes = layer_codes(index)[order]
            schema = schemas.activations(codes.shape[1], codes.dtype.itemsize)
            name = f"{layer_folder(self.columns.layers[index])}/{part_name(shard)}"
            table = keys.append_column(schema.field("activation"), pack_rows(codes))
            return name, write_table(
                base / name,
                table,
                schema,
                compression="none" if staged else COMPRESSION,
                compression_level=None if staged else COMPRESSION_LEVEL,
                use_dictionary=False,
                durable=False,
            )

        indices = range(len(self.columns.layers))
        entries: Iterable[tuple[str, FileEntry]] = executor.map(write, indices) if executor else map(write, indices)
        files = dict(entries)
        if losses is not None:
            write_table(self._losses(shard), self._losses_table(losses()), _LOSSES, durable=False)
            self._losses(shard).to_disk()
        if not staged:
            # Before anything vouches for them; what is lost of staged files is staged again.
            for name in files:
                (base / name).to_disk()
        marker = Marker(files=files, batch_tokens=batch_tokens, seconds=seconds())
        self._marker(shard, staged).write_bytes(marker.to_json())
        self._sizes |= {self._path(name, staged): entry.size_bytes for name, entry in files.items()}

    def read_staged(self, shard: int, index: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Row ids and float16 activations of one layer of a staged shard, checked against its digest.

        Raises
        ------
        ArtifactError
            If the file is missing or damaged.
        """
        name = f"{layer_folder(self.columns.layers[index])}/{part_name(shard)}"
        marker = Marker.from_json(self._marker(shard, True).read_bytes())
        table = read_table(self._base(True) / name, entry=marker.files[name]).combine_chunks()
        column = table.column("activation").chunk(0)
        return table.column("row_id").to_numpy(), unpack_rows(column, np.dtype("<f2"))

    def ranges(self) -> Ranges | None:
        """The quantisation ranges, if they have been decided."""
        location = self._base(True) / "ranges.parquet"
        # Another part of a shared extraction may have decided meanwhile.
        location.forget_kept()
        if location.find_bytes() is None:
            return None
        table = read_table(location)
        columns = (table.column(name).to_numpy().reshape(self.columns.shape) for name in ("low", "high", "mean"))
        return ranges_from_extremes(*columns)

    def decide_ranges(self, shards: list[int], executor: Executor) -> Ranges:
        """Take the ranges from staged shards, smallest to largest value of each neuron, and write them down.

        Ranges that another process wrote down meanwhile are taken instead: all shards are encoded with the same.
        """
        shape = self.columns.shape
        low, high = np.full(shape, np.inf, np.float32), np.full(shape, -np.inf, np.float32)
        total, n_rows = np.zeros(shape, np.float64), 0

        def take(shard: int, index: int) -> int:
            values, at = self.read_staged(shard, index)[1].astype(np.float32), self.columns.at(index)
            low[at] = np.minimum(low[at], values.min(axis=0))
            high[at] = np.maximum(high[at], values.max(axis=0))
            total[at] += values.sum(axis=0, dtype=np.float64)
            return len(values)

        for shard in shards:
            n_rows += max(executor.map(take, itertools.repeat(shard), range(len(self.columns.layers))))
        mean = (total / n_rows).astype(np.float32)
        table = pa.table({name: array.reshape(-1) for name, array in (("low", low), ("high", high), ("mean", mean))})
        kept = self.ranges()
        if kept is None:
            write_table(self._base(True) / "ranges.parquet", table, table.schema)
            kept = self.ranges()
        return kept or ranges_from_extremes(low, high, mean)

    def read_losses(self, shards: Iterable[int]) -> Losses:
        """Losses of some finished shards, added up."""
        shape = self.columns.shape
        n_clipped, max_error = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for shard in shards:
            table = read_table(self._losses(shard))
            n_clipped += table.column("n_clipped").to_numpy().reshape(shape)
            max_error = np.maximum(max_error, table.column("max_error").to_numpy().reshape(shape))
        return Losses(n_clipped, max_error)

    def write_tables(self) -> dict[str, FileEntry]:
        """Write ``rows.parquet`` and, where not all neurons are stored, ``neurons.parquet``."""
        # Row groups small enough that writing takes little memory.
        entry = write_table(self.folder / "rows.parquet", self.rows, schemas.ROWS, row_group_rows=1 << 14)
        files = {"rows.parquet": entry}
        if not self.columns.is_whole:
            name = "neurons.parquet"
            files[name] = write_table(self.folder / name, self.columns.table(), schemas.NEURONS)
        return files

    def write_quantisation(self, ranges: Ranges, losses: Losses) -> dict[str, FileEntry]:
        """Write ``quantisation.parquet``: ranges and losses of every neuron."""
        layer, neuron = self.columns.axes()
        table = pa.table(
            {
                "layer": layer,
                "neuron": neuron,
                "offset": ranges.offset.reshape(-1),
                "scale": ranges.scale.reshape(-1),
                "origin": ranges.origin.reshape(-1),
                "clipped_fraction": (losses.n_clipped / max(1, self.rows.num_rows)).astype(np.float32).reshape(-1),
                "max_error": losses.max_error.reshape(-1),
            }
        )
        name = "quantisation.parquet"
        return {name: write_table(self.folder / name, table, schemas.QUANTISATION)}

    def names_to_disk(self) -> None:
        """Bring the names of the layers' files to the disk: a marker whose files have none is no marker, a manifest would lie."""
        for layer in self.columns.layers:
            (self.folder / layer_folder(layer)).to_disk()

    def remove_scaffolding(self) -> None:
        """Remove markers, staged files and whatever a killed process left half-written. Only after the manifest."""
        for name in (_STAGING, _MARKERS):
            _remove(self.folder / name)
        if self.folder.is_object_store:
            return
        for folder in (self.folder, *(self.folder / layer_folder(layer) for layer in self.columns.layers)):
            selector = pafs.FileSelector(folder.path, allow_not_found=True)
            for info in folder.filesystem.get_file_info(selector):
                if info.base_name.startswith(TEMPORARY_PREFIX):
                    _remove(Location(folder.filesystem, info.path))

    def _losses_table(self, losses: Losses) -> pa.Table:
        layer, neuron = self.columns.axes()
        return pa.table(
            {
                "layer": layer,
                "neuron": neuron,
                "n_clipped": losses.n_clipped.astype(np.int64).reshape(-1),
                "max_error": losses.max_error.reshape(-1),
            }
        )

    def _base(self, staged: bool) -> Location:
        return self.folder / _STAGING if staged else self.folder

    def _marker(self, shard: int, staged: bool) -> Location:
        return self.folder / (_STAGING if staged else _MARKERS) / f"{shard:05d}.json"

    def _losses(self, shard: int) -> Location:
        return self.folder / _MARKERS / f"{shard:05d}-losses.parquet"


def _remove(location: Location) -> None:
    """Remove a file or folder that another process may be removing too."""
    if location.is_object_store:
        location.delete()
        return
    while location.exists():
        with contextlib.suppress(FileNotFoundError):
            location.delete()
