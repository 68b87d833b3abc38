"""Every command of the README runs as printed; every command in the guides is one that there is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import build_parser
from tests.integration.conftest import free_port

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OURS = re.compile(r"^(?:sparse-probing|prefect|export|\. )")


def blocks(path: Path) -> list[list[str]]:
    """Commands of each block of commands, comments and continued lines as printed."""
    found = [block.splitlines() for block in BLOCK.findall(path.read_text(encoding="utf-8"))]
    return [lines for lines in found if lines and OURS.match(lines[0])]


def titled(title: str) -> str:
    """The commands under a heading of the README."""
    section = README.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return "\n".join(BLOCK.findall(section))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, tiny_profile: Path, prefect_environment: dict[str, str]):
    """Runs commands as in the README's folder, on a small model instead of the demo's."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".venv").symlink_to(sys.prefix)
    port = str(free_port())
    unset = {"PREFECT_API_URL", "SPARSE_PROBING_DATA"}
    environment = {name: value for name, value in prefect_environment.items() if name not in unset}

    def run(commands: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        commands = commands.replace("4200", port).replace("--profile demo", f"--profile {tiny_profile}")
        commands = commands.replace("profile=demo", f"profile={tiny_profile}")
        # The reader is told to edit the new profile at this point.
        commands = re.sub(r"^(.*profile new.*)$", rf"\1\ncp {tiny_profile} mine.toml", commands, flags=re.MULTILINE)
        return subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", commands],
            cwd=folder,
            env=environment | {"PREFECT_SERVER_API_PORT": port},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )

    done = run(f". .venv/bin/activate\nsparse-probing study --profile {tiny_profile}")
    assert done.returncode == 0, done.stdout + done.stderr
    return run


@pytest.mark.slow
@pytest.mark.parametrize("title", ["Ask", "Run your own"])
def test_the_commands_under(title: str, shell) -> None:
    done = shell(titled("Ask").splitlines()[0] + "\n" + titled(title))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_that_deploy(shell) -> None:
    activate = titled("Ask").splitlines()[0]
    try:
        done = shell(activate + "\n" + titled("Deploy"))
    finally:
        stopped = shell(f"{activate}\nsparse-probing down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Completed" in done.stdout
    assert stopped.stdout.count("not running") == 4


@pytest.mark.parametrize("path", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name)
def test_every_command_in_the_guides_is_one(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    printed: list[str] = []
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            # A quotation that is still open goes on in the next line.
            if printed and printed[-1].count('"') % 2:
                printed[-1] += " " + line.strip()
            else:
                printed.append(line)
        printed.append("")
    commands = [line for line in printed if line.startswith("sparse-probing ")]
    commands += re.findall(r"`(sparse-probing [a-z][^`…]*)`", text)
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        if (
            words[0] in ("demo", "up", "down", "deploy", "report", "collections", "check", "repair", "gc", "runs")
            or len(words) > 1
        ):
            build_parser().parse_args([re.sub(r"^[IiNn]/[Nn]$", "0/2", word) for word in words])


def test_the_readme_has_the_sections_that_are_run() -> None:
    assert len(blocks(README)) >= 3
    assert titled("Ask").startswith(". .venv/bin/activate")
