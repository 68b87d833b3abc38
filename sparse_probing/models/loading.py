"""Models and tokenizers, from a spec to something that runs: resolve once, then load.

Safetensors only; code that comes with a model is never run. What is hooked where is in `hooks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

# Not inside a function: of several threads that import transformers at once, some fail.
from transformers import AutoConfig, AutoModel, AutoTokenizer

from sparse_probing.config import ModelSpec
from sparse_probing.errors import InputError
from sparse_probing.models import limits
from sparse_probing.models.complete import check_complete
from sparse_probing.models.gguf import convert_gguf, no_progress_bars
from sparse_probing.models.hooks import count_neurons
from sparse_probing.models.precision import fastest_dtype, stored_dtype
from sparse_probing.models.resolved import (
    ModelFacts,
    ResolvedModel,
    dtype_choice,
    keep_facts,
    kept_facts,
    model_files,
    plain_dtype,
    resolved,
)
from sparse_probing.models.sources import Source, check_tokenizer, find_source
from sparse_probing.models.sources import preflight as preflight

_CHUNK_BYTES = 1 << 22

# The value kept under a name, decided by the second argument if there is none yet.
KeepFirst = Callable[[str, Callable[[], str]], str]


def resolve_model(
    spec: ModelSpec, *, models_dir: Path, device: str = "auto", keep_first: KeepFirst | None = None
) -> ResolvedModel:
    """Bring a model's files here (download, convert), describe and digest them, and settle the dtype.

    The description is kept in `models_dir`, so that a second call reads no weights.

    Parameters
    ----------
    device:
        Where the model will run: ``auto`` as dtype depends on what this device multiplies fast.
    keep_first:
        Keeps the first choice of a dtype, by a name that tells the weights apart: parts of one extraction on several
        machines, and runs that go on after a break, must run in one dtype. Without it, each call chooses anew.

    Raises
    ------
    InputError
        If the model cannot be had (see `preflight`), a file of it is missing or cut off, its configuration is unknown
        to transformers, it is no model of text alone, or it lacks the kind of attention that the spec asks for.
    """
    source = find_source(spec)
    folder = _folder(source, models_dir)
    facts = _described(folder, models_dir)
    if spec.attention == "sdpa" and not facts.has_sdpa:
        raise InputError(
            f"Architecture {facts.architecture!r} has no attention 'sdpa'.", remedy='Set models.attention = "eager".'
        )
    dtype = plain_dtype(spec, facts)
    if dtype is None:

        def choose() -> str:
            return fastest_dtype(facts.stored_dtype, choose_device(device))

        dtype = keep_first(dtype_choice(facts), choose) if keep_first else choose()
    return resolved(spec, source, folder, facts, dtype)


def local_folder(spec: ModelSpec, *, models_dir: Path) -> Path:
    """Folder of a model's configuration, safetensors and tokenizer on this machine: downloaded or converted if need be.

    Raises
    ------
    InputError
        If the model cannot be had (see `preflight`).
    """
    return _folder(find_source(spec), models_dir)


def load_tokenizer(resolved: ResolvedModel) -> Any:
    """The model's tokenizer, from the files that `resolve_model` digested.

    Raises
    ------
    InputError
        If the folder holds no tokenizer, or none that transformers can load.
    """
    check_tokenizer(resolved.folder)
    try:
        return AutoTokenizer.from_pretrained(str(resolved.folder), trust_remote_code=False)
    except Exception as error:  # what reads tokenizer.json raises no narrower one
        raise InputError(
            f"Model {resolved.short_name!r} has no tokenizer that can be loaded: {error}.",
            remedy=f"Save its tokenizer into {resolved.folder}.",
        ) from error


def load_model(resolved: ResolvedModel, *, device: str = "cpu") -> nn.Module:
    """The base model (no language-model head) in its dtype on a device, for inference: no gradients, no dropout.

    Raises
    ------
    InputError
        If the weights cannot be loaded, or do not cover the model.
    """
    try:
        with no_progress_bars():
            model, report = AutoModel.from_pretrained(
                str(resolved.folder),
                dtype=getattr(torch, resolved.dtype),
                attn_implementation=resolved.attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"Model {resolved.short_name!r} cannot be loaded from {resolved.folder}: {error}.",
            remedy="Check that the folder was saved by save_pretrained and that attention is sdpa or eager.",
        ) from error
    # A pooler is beside every hook; anything else that is missing would be random numbers.
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise InputError(
            f"Model {resolved.short_name!r}: {len(missing)} weights are missing from its files ({missing[0]}, …).",
            remedy=f"Replace {resolved.folder} by the whole model.",
        )
    loaded: nn.Module = model.to(device).eval().requires_grad_(False)
    return loaded


def without_weights(folder: Path) -> Any:
    """The base model that a folder's configuration describes, on torch's meta device: modules and shapes alone.

    Raises
    ------
    InputError
        If the configuration is unknown to transformers.
    """
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        with torch.device("meta"):
            return AutoModel.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"The configuration in {folder} is unknown to transformers: {error}.",
            remedy="Use an architecture that transformers holds itself: code from a model's folder is never run.",
        ) from error


def choose_device(device: str = "auto") -> str:
    """``auto`` to the fastest device there is; any other name is checked and returned.

    Raises
    ------
    InputError
        If CUDA is asked for and not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"Device {device!r} asked for; torch finds no CUDA device.", remedy="Use auto or cpu.")
    return device


def _folder(source: Source, models_dir: Path) -> Path:
    return convert_gguf(source.path, models_dir) if source.is_gguf else source.path


def _described(folder: Path, models_dir: Path) -> ModelFacts:
    """Digests and shape of a model's folder, from the cache if no file changed since."""
    kept = kept_facts(folder, models_dir)
    if kept is not None:
        return kept
    check_complete(folder)
    weights, tokenizer = model_files(folder)
    facts = ModelFacts(
        **_shape(folder),
        stored_dtype=stored_dtype(weights),
        weights_digest=_digest_files(weights),
        tokenizer_digest=_digest_files(tokenizer),
    )
    keep_facts(facts, folder, models_dir)
    return facts


def _shape(folder: Path) -> dict[str, Any]:
    """What the modules of the model tell without weights: fields of `ModelFacts`."""
    model = without_weights(folder)
    limits.check_reads_text(model)
    n_layers, n_neurons = count_neurons(model)
    return {
        "architecture": str(model.config.model_type),
        "n_layers": n_layers,
        "n_neurons": n_neurons,
        "n_positions": limits.max_positions(model),
        "n_embeddings": limits.n_embeddings(model),
        "has_sdpa": getattr(model, "_supports_sdpa", True) is not False,
    }


def _digest_files(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        hasher = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                hasher.update(chunk)
        total.update(f"{path.name}:{hasher.hexdigest()}\n".encode())
    return total.hexdigest()
