"""What is known of a model whose files are on this machine, kept so that a second look reads no weights.

Light: neither torch nor transformers is imported. What makes a description is in `loading`; what is here finds one again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sparse_probing.config import ModelSpec
from sparse_probing.models.complete import TOKENIZER_FILES, WEIGHTS_PATTERN
from sparse_probing.models.sources import Source, find_here

# Raised when the same GGUF file would be converted to other weights.
CONVERTER_VERSION = 1
_CACHE_FOLDER = "resolved"
_CACHE_VERSION = 3
_SAMPLE_BYTES = 1 << 20
# File systems allow 255 bytes for a name.
_STEM_BYTES = 200


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose files are on this machine, with everything that decides its activations.

    Attributes
    ----------
    folder:
        Folder with configuration, safetensors and tokenizer.
    short_name, id:
        As in the spec.
    revision:
        Commit of a hub repository, version of a package, or ``local``.
    architecture:
        The configuration's model type, such as ``gpt_neox``.
    n_layers, n_neurons:
        Blocks, and MLP neurons in the widest; 0 where the modules do not tell.
    n_positions, n_embeddings:
        Longest sequence and number of token ids that the model has embeddings for; None where nothing limits them.
    weights_digest, tokenizer_digest:
        SHA-256 (hex) over names and contents of the files.
    dtype:
        What the model runs in: never ``auto``.
    attention:
        As in the spec.
    """

    folder: Path
    short_name: str
    id: str
    revision: str
    architecture: str
    n_layers: int
    n_neurons: int
    weights_digest: str
    tokenizer_digest: str
    dtype: str
    attention: str
    n_positions: int | None = None
    n_embeddings: int | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a model's files tell, whatever a spec asks of it: attributes as in `ResolvedModel`.

    Attributes
    ----------
    stored_dtype:
        Of most weights.
    has_sdpa:
        Whether the architecture has scaled dot-product attention.
    """

    architecture: str
    n_layers: int
    n_neurons: int
    n_positions: int | None
    n_embeddings: int | None
    has_sdpa: bool
    stored_dtype: str
    weights_digest: str
    tokenizer_digest: str


def find_resolved(
    spec: ModelSpec, *, models_dir: Path, kept_choice: Callable[[str], str | None]
) -> ResolvedModel | None:
    """The model as `loading.resolve_model` describes it, if that was done before and no file changed since; else None.

    Nothing is downloaded, converted or measured.

    Parameters
    ----------
    kept_choice:
        The value that was kept under a name of `dtype_choice`, None if none was.

    Raises
    ------
    InputError
        If the spec names a package or folder that is not there.
    """
    source = find_here(spec)
    if source is None:
        return None
    folder = converted_folder(source.path, models_dir) if source.is_gguf else source.path
    facts = kept_facts(folder, models_dir) if (folder / "config.json").is_file() else None
    if facts is None:
        return None
    dtype = plain_dtype(spec, facts) or kept_choice(dtype_choice(facts))
    return None if dtype is None else resolved(spec, source, folder, facts, dtype)


def resolved(spec: ModelSpec, source: Source, folder: Path, facts: ModelFacts, dtype: str) -> ResolvedModel:
    """Spec, files, facts and dtype put together."""
    return ResolvedModel(
        folder=folder,
        short_name=spec.short_name,
        id=spec.id,
        revision=source.revision,
        architecture=facts.architecture,
        n_layers=facts.n_layers,
        n_neurons=facts.n_neurons,
        weights_digest=facts.weights_digest,
        tokenizer_digest=facts.tokenizer_digest,
        dtype=dtype,
        attention=spec.attention,
        n_positions=facts.n_positions,
        n_embeddings=facts.n_embeddings,
    )


def plain_dtype(spec: ModelSpec, facts: ModelFacts) -> str | None:
    """The dtype that a spec asks for, or that ``auto`` means on every device; None where it depends on the device."""
    if spec.dtype != "auto":
        return spec.dtype
    return "float32" if facts.stored_dtype == "float32" else None


def dtype_choice(facts: ModelFacts) -> str:
    """The name under which the choice of a dtype for these weights is kept in a data folder."""
    return f"dtype-{facts.weights_digest[:16]}"


def converted_folder(gguf: Path, models_dir: Path) -> Path:
    """Where a GGUF file's converted model lies: named by the file's name, size and first and last bytes."""
    size = gguf.stat().st_size
    hasher = hashlib.sha256(f"{CONVERTER_VERSION}:{size}:".encode())
    with gguf.open("rb") as stream:
        hasher.update(stream.read(_SAMPLE_BYTES))
        stream.seek(max(0, size - _SAMPLE_BYTES))
        hasher.update(stream.read(_SAMPLE_BYTES))
    stem = os.fsencode(gguf.stem)[:_STEM_BYTES].decode(errors="ignore")
    return models_dir / f"{stem}-{hasher.hexdigest()[:12]}"


def model_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of the weights and of the tokenizer, each sorted."""
    tokenizer = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(folder.glob(WEIGHTS_PATTERN)), sorted(tokenizer)


def kept_facts(folder: Path, models_dir: Path) -> ModelFacts | None:
    """What was kept of a model's folder; None if nothing was, or a file changed since."""
    try:
        found = json.loads(_kept_at(folder, models_dir).read_text(encoding="utf-8"))
        return ModelFacts(**found)
    except (OSError, ValueError, TypeError):
        return None


def keep_facts(facts: ModelFacts, folder: Path, models_dir: Path) -> None:
    """Keep what is known of a model's folder, until a file of it changes."""
    kept = _kept_at(folder, models_dir)
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".tmp-{kept.name}-{os.getpid()}")
    temporary.write_text(json.dumps(asdict(facts)), encoding="utf-8")
    temporary.replace(kept)


def _kept_at(folder: Path, models_dir: Path) -> Path:
    weights, tokenizer = model_files(folder)
    state = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in [folder / "config.json", *weights, *tokenizer]
    ]
    key = hashlib.sha256(json.dumps([_CACHE_VERSION, str(folder.resolve()), state]).encode()).hexdigest()
    return models_dir / _CACHE_FOLDER / f"{key}.json"
