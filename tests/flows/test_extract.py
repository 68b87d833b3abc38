"""The command that extracts alone: whole, and as parts run by several processes at once, with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROFILE = """
name = "tiny"
[[models]]
id = "{model}"
[extraction]
shard_tokens = 512
batch_tokens = 256
calibration_rows = 64
[[collections]]
collection = "natural_lang_id"
context_length = 32
options = {{ sequences_per_class = 24 }}
"""


def start(profile: Path, data: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "--data", str(data), "extract", "--profile", str(profile), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def files(data: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(data)): path.read_bytes()
        for folder in ("activations", "datasets")
        for path in sorted((data / folder).rglob("*"))
        if path.is_file() and path.name != "made.json"
    }


@pytest.mark.slow
def test_two_parts_at_once_make_what_one_process_makes(tmp_path: Path, tiny_model: Path) -> None:
    profile = tmp_path / "tiny.toml"
    profile.write_text(PROFILE.format(model=tiny_model), encoding="utf-8")
    parts = [start(profile, tmp_path / "shared", "--shard", f"{i}/2") for i in range(2)]
    outputs = [part.communicate(timeout=900) for part in parts]
    assert [part.returncode for part in parts] == [0, 0], outputs
    # Whoever ends last sees it finished; the other may have ended before.
    assert any("finished" in out and "sparse-probing study" in out for out, _ in outputs), outputs
    one = start(profile, tmp_path / "alone")
    out, errors = one.communicate(timeout=900)
    assert one.returncode == 0, errors
    found, wanted = files(tmp_path / "shared"), files(tmp_path / "alone")
    assert sum(name.endswith(".parquet") for name in wanted) > 3 * 4
    assert list(found) == list(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert not (tmp_path / "alone" / "results").exists()
    folder = next(line.split()[-1] for line in out.splitlines() if line.startswith("finished"))
    assert (Path(folder) / "manifest.json").is_file()


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2", "1/0"])
def test_a_part_that_cannot_be_is_one_clear_line(tmp_path: Path, tiny_model: Path, shard: str) -> None:
    from flows.studies import _part
    from sparse_probing.errors import InputError

    with pytest.raises(InputError, match="expected I/N"):
        _part(shard)
    if shard == "2/2":
        process = start(tmp_path / "not_read.toml", tmp_path / "data", "--shard", shard)
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 2
        assert len(errors.strip().splitlines()) == 1
