"""A study whose data folder has credentials in its URI: neither Prefect's database nor any file or output holds them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import ROOT, free_port

KEY, SECRET, ENCODED = "AKIAEXAMPLEKEY", "wJalr/UtnFEMI+K7MDENG", "wJalr%2FUtnFEMI%2BK7MDENG"
# As a worker runs it: nothing was checked before.
SCRIPT = """
import sys
from sparse_probing.config import load_profile
from tasks.locations import located
from flows.study import study
print(located("datasets/x"))
study(profile=sys.argv[1], spec=load_profile(sys.argv[1]))
"""


def test_a_flow_that_cannot_reach_its_data(
    tmp_path: Path, tiny_profile: Path, prefect_environment: dict[str, str]
) -> None:
    uri = f"s3://{KEY}:{ENCODED}@bucket/data?endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=us-east-1"
    home = tmp_path / "prefect"
    environment = prefect_environment | {
        "PREFECT_HOME": str(home),
        "SPARSE_PROBING_DATA": uri,
        "SPARSE_PROBING_LOCAL": str(tmp_path / "local"),
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_profile)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=900,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("bucket/data/datasets/x\n")
    assert "Data folder s3://bucket/data cannot be reached" in done.stderr
    texts = {"stdout": done.stdout, "stderr": done.stderr}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            texts[str(path)] = path.read_bytes().decode(errors="replace")
    # The failure itself is there.
    assert any("cannot be reached" in text for name, text in texts.items() if name.startswith(str(home)))
    for name, text in texts.items():
        for form in (KEY, SECRET, ENCODED, "wJalr", "K7MDENG"):
            assert form not in text, (name, form)
