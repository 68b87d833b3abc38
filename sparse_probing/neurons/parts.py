"""The results of a pass as one file, so that parts of a pass can be merged on another machine.

The file is a zip of NumPy arrays and a JSON document; nothing in it is unpickled.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_probing.activations.quantisation import Ranges
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError
from sparse_probing.neurons.collecting import Collected
from sparse_probing.neurons.contexts import TopContexts
from sparse_probing.neurons.level_counts import LevelTables
from sparse_probing.neurons.statistics import NeuronStatistics
from sparse_probing.store.filesystem import Location

FORMAT_VERSION = 1
_PARTS: dict[str, type[Any]] = {
    "ranges": Ranges,
    "statistics": NeuronStatistics,
    "contexts": TopContexts,
    "levels": LevelTables,
}
_FACTS = "facts"


def save_collected(collected: Collected, location: Location) -> None:
    """Write everything collected to one file, which appears when it is whole.

    Raises
    ------
    ArtifactError
        If the file cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    facts: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        **{
            name: getattr(collected, name)
            for name in ("digest", "dataset_digest", "bos_token_id", "layers", "n_shards")
        },
        "spec": collected.spec.model_dump(mode="json"),
        "shards": sorted(collected.shards),
    }
    for part in _PARTS:
        held = getattr(collected, part)
        if held is None:
            continue
        facts[part] = {}
        for field in fields(held):
            value = getattr(held, field.name)
            if isinstance(value, np.ndarray):
                arrays[f"{part}.{field.name}"] = value
            else:
                facts[part][field.name] = value
    arrays[_FACTS] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    location.write_bytes(stream.getvalue())


def load_collected(location: Location) -> Collected:
    """Read what `save_collected` wrote.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged or of another version.
    """
    data = location.read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(arrays.pop(_FACTS).tobytes())
        if facts.pop("format_version") != FORMAT_VERSION:
            raise ValueError("it has another format version")
        parts: dict[str, Any] = {}
        for part, kind in _PARTS.items():
            others = facts.pop(part, None)
            if others is None:
                parts[part] = None
                continue
            values = {name: _frozen(value) for name, value in others.items()}
            names = {field.name for field in fields(kind)} - values.keys()
            parts[part] = kind(**values, **{name: arrays[f"{part}.{name}"] for name in names})
        spec = ExtractionSpec.model_validate(facts.pop("spec"))
        shards = frozenset(facts.pop("shards"))
        return Collected(spec=spec, shards=shards, **{name: _frozen(v) for name, v in facts.items()}, **parts)
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(
            f"{location} does not hold what a pass collected: {error}.",
            remedy="Collect that part again.",
        ) from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
