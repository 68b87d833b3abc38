"""Rows on disk to matrices in memory: one layer of an activations artifact, in row order.

Layout of an activations artifact: ``rows.parquet`` (schema `ROWS`), ``neurons.parquet`` (schema `NEURONS`, where not all
neurons are stored), ``quantisation.parquet`` (schema `QUANTISATION`, for uint8), ``layer=NN/part-NNNNN.parquet`` (schema
`activations`), ``manifest.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_probing.errors import ArtifactError
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import Manifest, read_manifest
from sparse_probing.store.parquet import read_table

STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "uint8": np.dtype(np.uint8),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}


@dataclass(frozen=True)
class LayerMatrix:
    """One layer's stored rows.

    Attributes
    ----------
    neurons:
        (n_neurons,) int32: the model's number of each column, ascending.
    codes:
        (n_rows, n_neurons) uint8 levels (larger is larger), or float16 or float32 values. Row i is row_id i.
    offset, scale:
        (n_neurons,) float32; value = offset + scale * code. Zero and one unless codes are uint8.
    """

    layer: int
    neurons: NDArray[np.int32]
    codes: NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]
    offset: NDArray[np.float32]
    scale: NDArray[np.float32]

    def values(self, rows: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.float32]:
        """Activations as float32, (n_rows, n_neurons)."""
        values = self.codes[rows].astype(np.float32)
        if self.codes.dtype == np.uint8:
            values *= self.scale
            values += self.offset
        return values


def layer_folder(layer: int) -> str:
    """Name of a layer's folder."""
    return f"layer={layer:02d}"


def part_name(shard: int) -> str:
    """Name of a shard's file inside a layer's folder."""
    return f"part-{shard:05d}.parquet"


def pack_rows(codes: NDArray[np.generic]) -> pa.Array:
    """(n_rows, n_neurons) array to a fixed-size binary column, without a copy if it is contiguous."""
    contiguous = np.ascontiguousarray(codes)
    width = contiguous.shape[1] * contiguous.dtype.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), contiguous.shape[0], [None, pa.py_buffer(contiguous.reshape(-1).view(np.uint8))]
    )


def unpack_rows(column: pa.Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Fixed-size binary column to an (n_rows, n_neurons) array, without a copy."""
    width = column.type.byte_width
    start = column.offset * width
    flat = np.frombuffer(column.buffers()[1], dtype=np.uint8)[start : start + len(column) * width]
    return flat.view(dtype).reshape(len(column), width // dtype.itemsize)


def read_layer(folder: Location, layer: int, *, verify: bool = True, manifest: Manifest | None = None) -> LayerMatrix:
    """Read one layer of a finished activations artifact, rows ordered by row_id.

    Raises
    ------
    ArtifactError
        If the artifact is unfinished or damaged, the layer is not in it, or rows are missing.
    """
    manifest = manifest or read_manifest(folder)
    prefix = layer_folder(layer) + "/"
    names = [name for name in manifest.files if name.startswith(prefix)]
    layers = list(manifest.facts["layers"])
    if not names or layer not in layers:
        raise ArtifactError(
            f"{folder} holds layers {layers}; layer {layer} was asked for.", remedy="Edit extraction.layers."
        )
    dtype = STORAGE_DTYPES[manifest.facts["storage_dtype"]]
    neurons = _stored_neurons(folder, layer, manifest)
    n_rows, n_neurons = int(manifest.facts["n_rows"]), len(neurons)
    codes = np.empty((n_rows, n_neurons), dtype=dtype)
    seen = np.zeros(n_rows, dtype=bool)

    def place(name: str) -> None:
        entry = manifest.files[name] if verify else None
        table = read_table(folder / name, columns=["row_id", "activation"], entry=entry)
        for batch in table.to_batches():
            ids = batch.column("row_id").to_numpy()
            block = unpack_rows(batch.column("activation"), dtype)
            contiguous = len(ids) > 0 and ids[-1] - ids[0] + 1 == len(ids) and bool(np.all(np.diff(ids) == 1))
            codes[slice(ids[0], ids[-1] + 1) if contiguous else ids] = block
            seen[ids] = True

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(place, names))
    if not seen.all():
        raise ArtifactError(
            f"{folder} layer {layer}: {int((~seen).sum())} of {n_rows} rows are missing.",
            remedy=f"Delete {folder} and run the study again: it is made anew.",
        )
    offset, scale = np.zeros(n_neurons, np.float32), np.ones(n_neurons, np.float32)
    if dtype == np.uint8:
        ranges = read_table(folder / "quantisation.parquet", entry=manifest.files["quantisation.parquet"])
        mine = np.flatnonzero(ranges.column("layer").to_numpy() == layer)
        order = mine[np.argsort(ranges.column("neuron").to_numpy()[mine])]
        offset, scale = ranges.column("offset").to_numpy()[order], ranges.column("scale").to_numpy()[order]
        # Stored bytes count from each neuron's origin, modulo 256; uint8 arithmetic wraps as they did.
        codes += ranges.column("origin").to_numpy()[order]
    return LayerMatrix(layer=layer, neurons=neurons, codes=codes, offset=offset, scale=scale)


def _stored_neurons(folder: Location, layer: int, manifest: Manifest) -> NDArray[np.int32]:
    """The model's number of every column of a layer."""
    entry = manifest.files.get("neurons.parquet")
    if entry is None:
        return np.arange(int(manifest.facts["n_neurons"]), dtype=np.int32)
    table = read_table(folder / "neurons.parquet", entry=entry)
    mine = np.flatnonzero(table.column("layer").to_numpy() == layer)
    neurons: NDArray[np.int32] = table.column("neuron").to_numpy()[mine][
        np.argsort(table.column("column").to_numpy()[mine])
    ]
    return neurons


def iterate_layers(folder: Location, *, verify: bool = True) -> Iterator[LayerMatrix]:
    """All layers of a finished activations artifact, one at a time."""
    manifest = read_manifest(folder)
    for layer in manifest.facts["layers"]:
        yield read_layer(folder, layer, verify=verify, manifest=manifest)
