"""Whatever is damaged in a finished data folder, the next study sets it aside, makes it anew and ends in equal tables."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from sparse_probing.store.filesystem import Location
from sparse_probing.store.soundness import artifacts, find_damage
from tests.integration.test_study import contents

ROOT = Path(__file__).parents[2]
# Ten places: patterns of files, of which the last in order is taken.
PLACES = {
    "the labels of a dataset": "datasets/*/labels.parquet",
    "the manifest of a dataset": "datasets/*/manifest.json",
    "the activations of a layer": "activations/*/*/layer=01/part-*.parquet",
    "the quantisation of activations": "activations/*/*/quantisation.parquet",
    "the manifest of activations": "activations/*/*/manifest.json",
    "scores": "results/neuron_scores/*/part-00001.parquet",
    "fits": "results/probe_fits/*/part-*.parquet",
    "the manifest of a run": "results/runs/*/manifest.json",
    "the published database": "results.duckdb",
    "the working database": "working.duckdb",
}
KINDS = ("flipped", "truncated", "deleted")
SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
from flows.study import study
from sparse_probing.config import load_profile
from tasks import progress

plan = load_profile(sys.argv[1])
for line in sys.stdin:
    data = json.loads(line)
    os.environ["SPARSE_PROBING_DATA"] = data
    said = []
    for module in list(sys.modules.values()):
        if getattr(module, "say_and_log", None) is not None and module.__name__.startswith("tasks."):
            module.say_and_log = said.append
    try:
        study(profile=sys.argv[1], spec=plan)
        print(json.dumps({"said": said}), flush=True)
    except Exception as error:
        print(json.dumps({"said": said, "error": repr(error)}), flush=True)
"""


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "deleted":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        flipped = bytearray(data)
        flipped[len(data) // 3] ^= 8
        path.write_bytes(flipped)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cli, tiny_profile: Path) -> Path:
    data = tmp_path_factory.mktemp("whole") / "data"
    done = cli("study", "--profile", str(tiny_profile), data=data)
    assert done.returncode == 0, done.stdout + done.stderr
    return data


Studies = Callable[[list[Path]], list[list[str]]]


@pytest.fixture(scope="module")
def studies(prefect_environment: dict[str, str], prefect_server: str, tiny_profile: Path) -> Iterator[Studies]:
    """Run the study in some data folders at once, in a process each that stays: starting one takes longer than a study.

    Returns what each said beside its progress.
    """
    children: list[subprocess.Popen[str]] = []

    def run(folders: list[Path]) -> list[list[str]]:
        while len(children) < len(folders):
            children.append(
                subprocess.Popen(
                    [sys.executable, "-c", SCRIPT, str(tiny_profile)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    cwd=ROOT,
                    env=prefect_environment | {"PREFECT_API_URL": prefect_server},
                )
            )
        for child, data in zip(children, folders, strict=False):
            assert child.stdin is not None
            child.stdin.write(json.dumps(str(data)) + "\n")
            child.stdin.flush()
        answers = [
            json.loads(child.stdout.readline()) for child, _ in zip(children, folders, strict=False) if child.stdout
        ]
        assert [answer["error"] for answer in answers if "error" in answer] == []
        return [answer["said"] for answer in answers]

    yield run
    for child in children:
        child.communicate()
        assert child.returncode == 0


def digested(data: Path) -> dict[str, bytes]:
    """Every file that a manifest vouches for, and the manifests."""
    return {
        str(path.relative_to(data)): path.read_bytes()
        for place in ("datasets", "activations", "results")
        for path in sorted((data / place).rglob("*"))
        if path.is_file() and path.name != "made.json" and not path.name.startswith("times-")
    }


def test_equal_studies_at_once_leave_the_same_bytes_as_one_elsewhere(
    finished: Path, tmp_path: Path, studies: Studies
) -> None:
    data = tmp_path / "data"
    assert not [line for said in studies([data, data]) for line in said if "Warning" in line]
    assert digested(data) == digested(finished)
    assert contents(data) == contents(finished)
    assert not (data / "set_aside").exists()


def made_anew(place: str, kinds: Sequence[str], finished: Path, studies: Studies, folder: Path) -> None:
    """Damage a copy of the data folder for each kind, study all of them, and compare."""
    folders = [folder / kind for kind in kinds]
    for kind, data in zip(kinds, folders, strict=True):
        shutil.copytree(finished, data, copy_function=shutil.copy2)
        damage(sorted(data.glob(PLACES[place]))[-1], kind)
    for kind, data, said in zip(kinds, folders, studies(folders), strict=True):
        assert contents(data) == contents(finished), kind
        assert digested(data) == digested(finished), kind
        assert [one for folder in artifacts(Location.open(data)) if (one := find_damage(folder, every_byte=True))] == []
        # What was deleted as a whole is simply missing; the published database is replaced by each study.
        silent = kind == "deleted" and place.startswith(("the manifest", "the working"))
        if place != "the published database" and not silent:
            assert said, f"{kind}: it was made anew without a word"


@pytest.mark.parametrize(("place", "kind"), [(place, KINDS[i % 3]) for i, place in enumerate(PLACES)])
def test_the_next_study_makes_it_anew(place: str, kind: str, finished: Path, studies: Studies, tmp_path: Path) -> None:
    made_anew(place, [kind], finished, studies, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("place", PLACES)
def test_every_kind_of_damage(place: str, finished: Path, studies: Studies, tmp_path: Path) -> None:
    made_anew(place, KINDS, finished, studies, tmp_path)


def test_repair_finds_what_no_size_and_time_tells_and_gc_frees_what_was_set_aside(
    finished: Path, tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(finished, data, copy_function=shutil.copy2)
    for place in ("the labels of a dataset", "the activations of a layer", "scores"):
        path = sorted(data.glob(PLACES[place]))[-1]
        before = path.stat()
        damage(path, "flipped")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = cli("repair", data=data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 3 damaged." in done.stdout
    assert "Made anew: 3 artifacts." in done.stdout
    assert contents(data) == contents(finished)
    assert digested(data) == digested(finished)
    assert ": 0 damaged." in cli("repair", data=data).stdout
    listed = cli("gc", data=data)
    assert listed.stdout.count("(was damaged)") == 3
    assert len(list((data / "set_aside").iterdir())) == 3
    assert "Freed: " in cli("gc", "--delete", data=data).stdout
    assert "can be freed" in cli("gc", data=data).stdout
    assert list((data / "set_aside").iterdir()) == []
    assert contents(data) == contents(finished)
