"""Which dtype a model runs in: what its weights are stored in, and how fast this device multiplies each dtype.

Measures matrix products and reads the headers of safetensors files. Loading a model is `loading`'s work.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from sparse_probing.config import ModelSpec

# Names in the headers of safetensors files that a model can run in here.
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
FULL = "float32"
# One product of this many rows with a square matrix of this many rows and columns: 0.27 GFLOP.
_ROWS, _WIDTH = 128, 1024
TRIAL_SECONDS = 0.1


def stored_dtype(weights: list[Path]) -> str:
    """The dtype that most weights of some safetensors files are stored in; float32 where a model cannot run in it.

    Reads the files' headers only.
    """
    counts: Counter[str] = Counter()
    for path in weights:
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                counts[tensor["dtype"]] += end - begin
    return _DTYPES.get(counts.most_common(1)[0][0], FULL) if counts else FULL


@cache
def speed_ratio(dtype: str, device: str) -> float:
    """Speed of matrix products in a dtype over that in float32 on a device, measured in about a tenth of a second.

    Both sides take turns and the fastest of each counts, so that other work on the machine weighs little.
    """
    if dtype == FULL:
        return 1.0
    sides = [torch.ones(_ROWS, _WIDTH, dtype=getattr(torch, name), device=device) for name in (FULL, dtype)]
    matrices = [torch.ones(_WIDTH, _WIDTH, dtype=side.dtype, device=device) for side in sides]
    fastest = [float("inf")] * 2
    end = None
    while end is None or time.perf_counter() < end:
        for index, (rows, matrix) in enumerate(zip(sides, matrices, strict=True)):
            _wait(device)
            started = time.perf_counter()
            torch.nn.functional.linear(rows, matrix)
            _wait(device)
            if end is not None:
                fastest[index] = min(fastest[index], time.perf_counter() - started)
        # The first products set things up and do not count.
        end = end or time.perf_counter() + TRIAL_SECONDS
    return fastest[0] / fastest[1] if fastest[1] < float("inf") else 1.0


def fastest_dtype(stored: str, device: str) -> str:
    """The stored dtype where this device multiplies it at least as fast as float32, else float32."""
    return stored if speed_ratio(stored, device) >= 1.0 else FULL


def slow_choices(models: Sequence[ModelSpec], device: str) -> list[str]:
    """A line for each model whose profile names a dtype that this device multiplies slower than float32."""
    lines = []
    for model in models:
        ratio = 1.0 if model.dtype in ("auto", FULL) else speed_ratio(model.dtype, device)
        if ratio < 1.0:
            lines.append(
                f"Model {model.short_name} runs in {model.dtype}, which this device multiplies at {ratio:.2f} of the "
                'speed of float32. Set models.dtype = "auto" for the faster of the two.'
            )
    return lines


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
