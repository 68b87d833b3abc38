"""What Prefect costs a study: the same study as a flow and by `run_study`, each in a process and a data folder of its own.

``python -m benchmarks.bench_orchestration --profile demo --repeats 3``: both sides alternate; medians and their ratio. The flow runs
on an ephemeral server, which it starts itself, or with ``--server`` on the server that PREFECT_API_URL names.

``--warm``: how long a study that is extracted and not probed takes until the first layer is probed, for each side.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLOW = [sys.executable, "-m", "flows.cli", "study", "--profile"]
PLAIN = [sys.executable, "-c", "import sys, sparse_probing; sparse_probing.run_study(sys.argv[1])"]


def seconds(command: list[str], profile: str, environment: dict[str, str]) -> float:
    """Wall-clock time of one study from nothing: models are resolved and datasets built anew."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(
            [*command, profile],
            env=environment | {"SPARSE_PROBING_DATA": str(Path(folder) / "data")},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - began


def first_layer_seconds(command: list[str], profile: str, environment: dict[str, str], data: Path) -> float:
    """Time until the first layer of an extracted study is probed, after which the study is stopped and its results go."""
    began = time.perf_counter()
    study = subprocess.Popen(
        [*command, profile],
        env=environment | {"SPARSE_PROBING_DATA": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(data.glob("results/_running/*/*/manifest.json")):
        if study.poll() is not None:
            raise RuntimeError(f"The study ended with {study.returncode} before a layer was probed.")
        time.sleep(0.02)
    took = time.perf_counter() - began
    study.terminate()
    study.wait()
    shutil.rmtree(data / "results")
    return took


def warm(profile: str, repeats: int, environment: dict[str, str]) -> None:
    """Print the medians of `first_layer_seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        subprocess.run([*PLAIN, profile], env=environment | {"SPARSE_PROBING_DATA": str(data)}, check=True)
        shutil.rmtree(data / "results")
        for path in data.glob("*.duckdb*"):
            path.unlink()
        times: dict[str, list[float]] = {"flow": [], "run_study": []}
        for _ in range(repeats):
            for name, command in (("flow", FLOW), ("run_study", PLAIN)):
                times[name].append(first_layer_seconds(command, profile, environment, data))
    for name, found in times.items():
        print(f"{name:<10} first layer probed after {statistics.median(found):5.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--server", action="store_true", help="use the server that PREFECT_API_URL names")
    parser.add_argument(
        "--warm", action="store_true", help="time until the first layer of an extracted study is probed"
    )
    options = parser.parse_args()
    environment = dict(os.environ)
    if not options.server:
        environment.pop("PREFECT_API_URL", None)
    if options.warm:
        warm(options.profile, options.repeats, environment)
        return
    times: dict[str, list[float]] = {"flow": [], "run_study": []}
    for _ in range(options.repeats):
        for name, command in (("flow", FLOW), ("run_study", PLAIN)):
            times[name].append(seconds(command, options.profile, environment))
            print(f"{name:<10} {times[name][-1]:7.1f} s", flush=True)
    medians = {name: statistics.median(found) for name, found in times.items()}
    difference = medians["flow"] - medians["run_study"]
    print(f"Prefect costs {difference:.1f} s: {difference / medians['flow']:.1%} of a study of {medians['flow']:.0f} s")


if __name__ == "__main__":
    main()
