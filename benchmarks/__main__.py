"""Run every benchmark, each in its own process, one after the other: ``python -m benchmarks [NAME …]``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; returns the number that failed."""
    known = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"Unknown benchmark {', '.join(unknown)}; known: {', '.join(known)}.", file=sys.stderr)
        return 2
    failed = 0
    for name in names or known:
        print(f"\n## {name}\n", flush=True)
        failed += (
            subprocess.run(
                [sys.executable, "-m", f"benchmarks.bench_{name}"], cwd=FOLDER.parent, check=False
            ).returncode
            != 0
        )
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
