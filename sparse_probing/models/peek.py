"""The number of layers of a model before it is converted or loaded, from its configuration or GGUF header alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparse_probing.config import ModelSpec
from sparse_probing.models.sources import find_local, is_hub_id

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers")


def peek_n_layers(spec: ModelSpec) -> int | None:
    """Number of layers that the model's own description states; None where it cannot be known cheaply.

    Raises
    ------
    InputError
        If a local model cannot be found (see `loading.preflight`).
    """
    if is_hub_id(spec):
        from huggingface_hub import hf_hub_download

        try:
            config = Path(hf_hub_download(spec.id, "config.json", revision=spec.revision))
        except Exception:  # whatever keeps the hub from answering, resolving the model will say
            return None
        return _from_config(config)
    source = find_local(spec)
    if source.is_gguf:
        return _from_gguf(source.path)
    return _from_config(source.path / "config.json")


def _from_config(path: Path) -> int | None:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return next((int(config[key]) for key in _LAYER_KEYS if key in config), None)


def _from_gguf(path: Path) -> int | None:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    counts = [field for name, field in reader.fields.items() if name.endswith(".block_count")]
    return int(counts[0].parts[counts[0].data[0]][0]) if counts else None
