"""GGUF files to safetensors, once: a GGUF is slow to open, and its packed weights are no weights to look at.

The converted folder appears in one step or not at all. Nothing here is about any other format.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from sparse_probing.errors import InputError
from sparse_probing.models.complete import check_gguf_complete
from sparse_probing.models.resolved import converted_folder

SAVED_DTYPE = torch.bfloat16
LOADING_TRIES = 3


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars, which would end up in the middle of a flow's log."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Keep what transformers asks of the gguf package anew for tokenizer, configuration, weights and every module.

    Without it a file's header is parsed three times, and the table of tensor names is built once for each module.
    """
    import gguf

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def convert_gguf(gguf: Path, models_dir: Path) -> Path:
    """Convert a GGUF file to safetensors with its tokenizer, unless that was done before.

    Weights are unpacked to bfloat16.

    Parameters
    ----------
    gguf:
        The file.
    models_dir:
        Folder that holds converted models.

    Returns
    -------
    Path
        Folder with ``config.json``, safetensors and tokenizer.

    Raises
    ------
    InputError
        If the file is cut off or cannot be read as a model, or its weights are still packed after loading.
    """
    target = converted_folder(gguf, models_dir)
    if (target / "config.json").is_file():
        return target
    check_gguf_complete(gguf)
    models_dir.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=models_dir))
    try:
        try:
            with no_progress_bars(), _parsed_once():
                tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
                model = _load_whole(
                    AutoModelForCausalLM,
                    gguf.parent,
                    gguf_file=gguf.name,
                    dtype=SAVED_DTYPE,
                    quantization_config=GgufConfig(dequantize=True),
                )
        except (ValueError, OSError, KeyError, RuntimeError, NotImplementedError, ImportError) as error:
            raise InputError(
                f"GGUF file {gguf} cannot be converted: {error}.",
                remedy="Use a model saved as safetensors, or an architecture that transformers reads from GGUF.",
            ) from error
        packed = [name for name, weight in model.named_parameters() if weight.dtype != SAVED_DTYPE]
        if packed:
            raise InputError(
                f"GGUF file {gguf}: {len(packed)} weights stayed packed ({packed[0]}, …).",
                remedy="Use a model saved as safetensors.",
            )
        # What saving would refuse or write down again as quantised.
        model.hf_quantizer = None
        model.is_quantized = False
        if getattr(model.config, "quantization_config", None) is not None:
            del model.config.quantization_config
        with no_progress_bars():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            # Another process was first: its folder is as good as this one.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _load_whole(loader: Any, folder: Path, **options: Any) -> Any:
    """Load a model all of whose weights are in memory.

    Now and then a weight is still without data when loading returns: seen with transformers 5.23, in some runs and not in
    others, for the embedding that is tied to the head. Then weights are tied again, and loading is tried anew.
    """
    for _ in range(LOADING_TRIES):
        model = loader.from_pretrained(folder, **options)
        model.tie_weights()
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(), *model.state_dict().items()]
        empty = [name for name, tensor in tensors if tensor.device.type == "meta"]
        if not empty:
            return model
    raise RuntimeError(f"{len(empty)} weights were not read ({empty[0]}, …)")
