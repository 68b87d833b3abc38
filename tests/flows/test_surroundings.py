"""What is wrong around a command is one line before anything heavy is imported; proxies do not come between us."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from flows import surroundings
from flows.surroundings import check_prefect, prepare_environment
from sparse_probing.errors import InputError

ROOT = Path(__file__).parents[2]
# What a command that starts a study does first; then what it has imported.
FIRST_STEPS = """
import sys
from flows import cli
code = cli.main(["--data", sys.argv[1], "study", "--profile", "demo"])
heavy = {"prefect", "torch", "transformers", "duckdb", "sklearn"} & set(sys.modules)
print(code, sorted(heavy))
"""


def first_steps(data: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FIRST_STEPS, str(data)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    done = first_steps(tmp_path / "data", PREFECT_API_URL="http://127.0.0.1:9/api", PREFECT_HOME=str(tmp_path))
    assert done.stdout.split(maxsplit=1) == ["2", "[]\n"], done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert "http://127.0.0.1:9/api" in line
    assert "PREFECT_API_URL" in line


def test_a_server_named_by_prefects_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles.toml").write_text(
        'active = "lab"\n[profiles.lab]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n', encoding="utf-8"
    )
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    done = first_steps(tmp_path / "data", PREFECT_HOME=str(tmp_path))
    assert done.stdout.startswith("2 []"), done.stdout + done.stderr
    assert "profile 'lab'" in done.stderr


@pytest.mark.parametrize("variable", ["HOME", "PREFECT_HOME"])
def test_an_unwritable_home(tmp_path: Path, variable: str) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    changes = {"PREFECT_HOME": "", variable: str(in_the_way / "home")}
    done = first_steps(tmp_path / "data", **changes)
    assert done.stdout.startswith("2 []"), done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert "PREFECT_HOME" in line


def test_proxies_never_stand_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "internal.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    prepare_environment()
    assert os.environ["no_proxy"].split(",")[0] == "internal.example"
    for host in surroundings.THIS_MACHINE:
        assert urllib.request.proxy_bypass_environment(host)
    assert not urllib.request.proxy_bypass_environment("elsewhere.example")
    with httpx.Client() as client:
        local = client._transport_for_url(httpx.URL("http://127.0.0.1:4200/api"))
        far = client._transport_for_url(httpx.URL("http://elsewhere.example/"))
        assert local is client._transport
        assert far is not client._transport


def test_a_socks_proxy_without_its_package_is_left_out_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(surroundings.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("no_proxy", "")
    prepare_environment()
    assert "all_proxy" not in os.environ
    assert "socksio" in capsys.readouterr().err


def test_a_home_that_can_be_written_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "new"))
    check_prefect()
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setenv("PREFECT_API_URL", "not an address")
    with pytest.raises(InputError, match="not an address"):
        check_prefect()
