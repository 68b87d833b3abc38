"""Whether a model's files are whole: what a broken copy or a checkpoint still being written lacks.

Reads JSON files and the headers of weight files, never the weights. A file whose bytes are all there but wrong is not
found here.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sparse_probing.errors import InputError
from sparse_probing.mistakes import listed

WEIGHTS_PATTERN = "*.safetensors"
# What transformers looks for, in this order.
WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# Each of these can hold a whole vocabulary; the others only add to one.
VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.*.json",
    "tokenizer.model*",
    "tiktoken.model",
    "*.tiktoken",
    "tekken.json",
    "vocab.json",
    "vocab-src.json",
    "vocab.txt",
    "dict.txt",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "byte_maps.json",
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "bpe.codes",
    "normalizer.json",
)
# The most that the safetensors format allows.
MAX_HEADER_BYTES = 100_000_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.safetensors$")
# Types of values in a GGUF header, by their numbers.
_GGUF_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, _GGUF_LIST = 8, 9
_GGUF_ALIGNMENT = 32


class _Lacks(Exception):
    """What a file lacks, as the end of ``it is not complete: …``."""


def check_complete(folder: Path) -> None:
    """Check that a model's folder holds all it says it holds: configuration, index, shards, tensors, tokenizer.

    Raises
    ------
    InputError
        If a JSON file cannot be read, a shard that the index names is missing, a tensor is not in the shard that the
        index names, or the size of a weight file is not what its header says.
    """
    reason = why_incomplete(folder)
    if reason is not None:
        raise InputError(
            f"The model in {folder} is not complete: {reason}.",
            remedy="Wait until the checkpoint is written, or copy it again.",
        )


def why_incomplete(folder: Path) -> str | None:
    """What the first broken or missing file of a model's folder lacks; None where the model is whole."""
    try:
        config = _read_object(folder / "config.json")
        _check_weights(folder, config.get("transformers_weights"))
        _check_tokenizer(folder)
    except _Lacks as found:
        return str(found)
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    return None


def check_gguf_complete(path: Path) -> None:
    """Check that a GGUF file is as long as its header says.

    Raises
    ------
    InputError
        If the header cannot be read, or the file ends before its last tensor does.
    """
    try:
        _check_gguf(path)
    except (_Lacks, OSError) as found:
        reason = found.strerror if isinstance(found, OSError) else str(found)
        raise InputError(
            f"GGUF file {path} is not complete: {reason}.", remedy="Wait until it is written, or copy it again."
        ) from found


def missing_shards(names: Iterable[str]) -> list[str]:
    """Shards that are not among some files, though the names of others count them: ``model-00002-of-00002``."""
    present = set(names)
    missing: dict[str, None] = {}
    for match in filter(None, map(_SHARD.match, sorted(present))):
        stem, total = match[1], match[3]
        for number in range(1, int(total) + 1):
            shard = f"{stem}-{number:05d}-of-{total}.safetensors"
            if shard not in present:
                missing[shard] = None
    return list(missing)


def _check_weights(folder: Path, named: object) -> None:
    """Every safetensors file is whole, and so is the one, or the index of several, that the model is loaded from."""
    headers = {path.name: _tensors(path) for path in sorted(folder.glob(WEIGHTS_PATTERN))}
    names = (named,) if isinstance(named, str) else (WEIGHTS_NAME, WEIGHTS_INDEX)
    chosen = next((name for name in names if (folder / name).is_file()), None)
    if chosen is None:
        found = listed(list(headers)) or "no safetensors"
        raise _Lacks(f"there is no {' or '.join(names)} (found {found})")
    if chosen in headers:
        return
    index = folder / chosen
    shards = _read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise _Lacks(f"{chosen} names no shards (weight_map)")
    expected = sorted(set(shards.values()))
    absent = [shard for shard in expected if not (folder / shard).is_file()]
    if absent:
        raise _Lacks(f"{len(absent)} of {len(expected)} shards are missing ({listed(absent)})")
    for shard in expected:
        if shard not in headers:
            headers[shard] = _tensors(folder / shard)
    strays = [(tensor, shard) for tensor, shard in shards.items() if tensor not in headers[shard]]
    if strays:
        tensor, shard = strays[0]
        raise _Lacks(f"{len(strays)} of {len(shards)} tensors are not in their shards ({tensor} is not in {shard})")


def _tensors(path: Path) -> Mapping[str, Any]:
    """Tensors that the header of a safetensors file describes, once the file is seen to hold exactly their bytes."""
    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 or not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size_bytes - 8):
            raise _Lacks(f"{path.name} ({size_bytes:,} bytes) has no whole safetensors header")
        try:
            header = json.loads(stream.read(header_bytes))
        except ValueError as error:
            raise _Lacks(f"the header of {path.name} is no JSON") from error
    if not isinstance(header, dict):
        raise _Lacks(f"the header of {path.name} is no JSON object")
    header.pop("__metadata__", None)
    spans = sorted(_span(path, name, tensor) for name, tensor in header.items())
    end_bytes = 0
    for begin, end in spans:
        if begin != end_bytes:
            raise _Lacks(f"the tensors of {path.name} do not follow one another (byte {end_bytes:,} of its data)")
        end_bytes = end
    expected_bytes = 8 + header_bytes + end_bytes
    if size_bytes != expected_bytes:
        raise _Lacks(f"{path.name} has {size_bytes:,} bytes; its header describes {expected_bytes:,}")
    return header


def _span(path: Path, name: str, tensor: Any) -> tuple[int, int]:
    """First and last byte of a tensor, which agree with its shape."""
    try:
        begin, end = map(int, tensor["data_offsets"])
        bits = _BITS.get(tensor["dtype"])
        n_values = math.prod(map(int, tensor["shape"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _Lacks(f"the header of {path.name} does not describe its tensor {name}") from error
    if not 0 <= begin <= end or (bits is not None and (end - begin) * 8 != n_values * bits):
        raise _Lacks(f"the header of {path.name} gives tensor {name} {end - begin:,} bytes, which do not fit its shape")
    return begin, end


def _check_tokenizer(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in TOKENIZER_FILES):
            if path.suffix == ".json":
                _read_object(path)
            elif path.stat().st_size == 0 and path.name not in ("merges.txt", "bpe.codes"):
                raise _Lacks(f"{path.name} is empty")


def _read_object(path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    if not text.strip():
        raise _Lacks(f"{path.name} is empty")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Lacks(f"{path.name} ({len(text):,} bytes) is no whole JSON: {error}") from error
    if not isinstance(found, dict):
        raise _Lacks(f"{path.name} holds no JSON object")
    return found


def _check_gguf(path: Path) -> None:
    size_bytes = path.stat().st_size
    cut = f"it ends within its header ({size_bytes:,} bytes)"
    sizes = _gguf_sizes()
    alignment, ends = _GGUF_ALIGNMENT, [0]
    try:
        with path.open("rb") as stream:
            magic, version, n_tensors, n_fields = struct.unpack("<4sIQQ", stream.read(24))
            if magic != b"GGUF" or version < 2:
                raise _Lacks(f"it begins with {magic!r}, version {version}; expected b'GGUF', version 2 or later")
            for _ in range(n_fields):
                name = gguf_value(stream, GGUF_STRING)
                value = gguf_value(stream, struct.unpack("<I", stream.read(4))[0])
                if name == "general.alignment":
                    alignment = int(value)
            for _ in range(n_tensors):
                gguf_value(stream, GGUF_STRING)
                (n_axes,) = struct.unpack("<I", stream.read(4))
                *shape, kind, offset = struct.unpack(f"<{n_axes}QIQ", stream.read(8 * n_axes + 12))
                # Of packing that the package does not know, only where the tensor begins counts.
                block, block_bytes = sizes.get(kind, (1, 0))
                ends.append(offset + math.prod(shape) // block * block_bytes)
            begin = -(-stream.tell() // alignment) * alignment
    except (struct.error, KeyError, UnicodeDecodeError, ValueError, ZeroDivisionError, OverflowError, MemoryError) as e:
        raise _Lacks(cut) from e
    expected_bytes = begin + max(ends)
    if n_tensors and size_bytes < expected_bytes:
        raise _Lacks(f"it has {size_bytes:,} bytes; its header describes {expected_bytes:,}")


def _gguf_sizes() -> dict[int, tuple[int, int]]:
    """Values and bytes of a block, by the number of a way to pack weights; empty without the package that knows them."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError:
        return {}
    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}


def gguf_value(stream: BinaryIO, kind: int) -> Any:
    """One value of a GGUF header, whose type has this number; the items of a list are passed over.

    Raises
    ------
    struct.error, UnicodeDecodeError, KeyError
        If the file ends within the value, or there is no such type.
    """
    if kind == GGUF_STRING:
        (length,) = struct.unpack("<Q", stream.read(8))
        text = stream.read(min(length, MAX_HEADER_BYTES))
        if len(text) < length:
            raise struct.error("the file ends within a text")
        return text.decode("utf-8")
    if kind == _GGUF_LIST:
        item, length = struct.unpack("<IQ", stream.read(12))
        if item in _GGUF_NUMBERS:
            stream.seek(length * struct.calcsize(f"<{_GGUF_NUMBERS[item]}"), os.SEEK_CUR)
            return None
        for _ in range(length):
            gguf_value(stream, item)
        return None
    form = _GGUF_NUMBERS[kind]
    return struct.unpack(f"<{form}", stream.read(struct.calcsize(f"<{form}")))[0]
