"""A small but whole study: the tiny random GPT-NeoX, real text, every step of the pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROFILE = """
name = "tiny"
[[models]]
id = "{model}"
dtype = "float32"
[extraction]
shard_tokens = 1024
batch_tokens = 512
calibration_rows = 64
[probing]
k_values = [1, 2, 4]
n_bootstrap = 50
n_permutations = 50
[[collections]]
collection = "natural_lang_id"
context_length = 48
options = {{ sequences_per_class = 24 }}
[[collections]]
collection = "text_features"
context_length = 64
options = {{ sequences_per_class = 30, max_rows = 900 }}
"""


@pytest.fixture(scope="session")
def tiny_profile(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A profile file of the small study."""
    path = tmp_path_factory.mktemp("profile") / "tiny.toml"
    path.write_text(PROFILE.format(model=tiny_model), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prefect_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of subprocesses: a Prefect home of their own, migrated once for all tests of the session."""
    return os.environ | {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PYTHONPATH": str(ROOT),
    }


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cli(prefect_environment: dict[str, str]) -> Cli:
    """Run the command line in a subprocess; keyword `data` is the data folder."""

    def run(*arguments: str, data: Path, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "--data", str(data), *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=prefect_environment,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )

    return run
