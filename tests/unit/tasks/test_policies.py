"""Whoever waits for the device says for what, and who has it."""

from __future__ import annotations

import threading
import time

import pytest
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, VariableCreate

from tasks import policies


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(policies, "say", lines.append)
    monkeypatch.setattr(policies, "FIRST_WORD_SECONDS", 0.02)
    monkeypatch.setattr(policies, "NEXT_WORD_SECONDS", 0.02)
    return lines


def wait_until_said(said: list[str], log: Log, n: int) -> None:
    taken = threading.Event()
    thread = threading.Thread(target=policies._say_who_holds, args=("gpu-here", taken, log))
    thread.start()
    for _ in range(6000):
        if len(said) >= n:
            break
        time.sleep(0.01)
    taken.set()
    thread.join()
    assert len(said) >= n


def test_who_waits_says_for_whom_in_the_terminal_and_in_the_log(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies.Variable, "get", lambda name, default: "flow run 'activations of tiny'")
    log = Log()
    wait_until_said(said, log, 2)
    assert said == log.lines
    assert "'gpu-here'" in said[0]
    assert "flow run 'activations of tiny'" in said[0]


def test_a_server_that_cannot_be_asked_is_no_failure(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, default: str) -> str:
        raise ConnectionError("gone")

    monkeypatch.setattr(policies.Variable, "get", fails)
    wait_until_said(said, Log(), 1)
    assert "cannot be asked" in said[0]


@pytest.mark.parametrize(
    "host",
    ["node-1", "NODE-1", "node_1.lab.example", "node-1.lab.example", "a/b%c&d<e>f", "Küche", "机器", "", "x" * 300],
)
def test_a_hosts_limit_has_a_name_that_prefect_takes(host: str) -> None:
    limit = policies.device_limit(host)
    assert GlobalConcurrencyLimitCreate(name=limit, limit=1).name == limit
    assert VariableCreate(name=policies.holder_variable(limit), value="x").name


def test_hosts_that_differ_have_limits_that_differ() -> None:
    hosts = ["node-1", "node-2", "node_1", "node.1", "node-1.a", "node-1.b", "机", "器", "", "x" * 150, "x" * 151]
    assert len({policies.device_limit(host) for host in hosts}) == len(hosts)
    assert policies.device_limit("node-1") == policies.device_limit("Node-1") == "gpu-node-1"


def test_nothing_is_said_when_the_device_is_free(said: list[str]) -> None:
    taken = threading.Event()
    taken.set()
    policies._say_who_holds("gpu-here", taken, None)
    assert said == []
