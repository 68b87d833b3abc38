"""Whatever ends a flow is one line; a server that goes away ends the study within seconds."""

from __future__ import annotations

import asyncio
import http.server
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
from prefect.exceptions import PrefectHTTPStatusError

from flows import failures
from flows.failures import as_one_line, end_with_the_server, retry_first_connections
from flows.logs import log_to_file
from sparse_probing.errors import InputError


def test_our_own_failure_is_found_behind_another() -> None:
    own = InputError("Layer 99 requested; tiny has 3.", remedy="Edit it.")
    outer = RuntimeError("a flow failed\nin many lines")
    outer.__cause__ = own
    assert as_one_line(outer, log=Path("x.log")) is own
    assert as_one_line(ExceptionGroup("two", [ValueError("a"), own]), log=Path("x.log")) is own


def test_another_failure_is_one_line_that_names_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "server_in_use", lambda: "")
    line = str(as_one_line(ValueError("several\nlines\nof it"), log=Path("logs/study.log")))
    assert line.startswith("ValueError: several lines of it.")
    assert "logs/study.log" in line
    assert "\n" not in line


def test_a_lost_connection_is_the_servers_going(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "server_in_use", lambda: "http://127.0.0.1:9/api")
    error = RuntimeError("x")
    error.__context__ = httpx.ConnectError("refused")
    assert "127.0.0.1:9" in str(as_one_line(error, log=Path("x")))


def test_a_password_that_is_refused_is_no_server_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "server_in_use", lambda: "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "lab:wrong")
    request = httpx.Request("GET", "http://127.0.0.1:9/api/flows")
    answer = httpx.Response(401, request=request)
    error = PrefectHTTPStatusError("refused", request=request, response=answer)
    line = str(as_one_line(error, log=Path("x")))
    assert "does not accept what PREFECT_API_AUTH_STRING gives" in line
    assert "lab:wrong" not in line


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said, on a quicker clock."""
    lines: list[str] = []
    for name, seconds in (("ASK", 0.05), ("FIRST_WORD", 0.1), ("NEXT_WORD", 0.2), ("WAIT", 1.5)):
        monkeypatch.setattr(failures, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(failures, "say", lines.append)
    return lines


def serve(port: int = 0) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def close(server: http.server.ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


def test_a_server_that_stays_away_ends_the_study(quick: list[str]) -> None:
    server = serve()
    ended = threading.Event()
    with end_with_the_server(f"http://127.0.0.1:{server.server_address[1]}/api", end=ended.set):
        assert not ended.wait(0.5)
        assert quick == []
        close(server)
        assert ended.wait(60)
    assert len(quick) >= 2
    assert "Waiting for it" in quick[0]


def test_a_server_that_comes_back_is_waited_for(quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "WAIT_SECONDS", 60.0)
    server = serve()
    port = server.server_address[1]
    ended = threading.Event()
    with end_with_the_server(f"http://127.0.0.1:{port}/api", end=ended.set):
        close(server)
        wait_until(lambda: len(quick) >= 2)
        back = serve(port)
        wait_until(lambda: "answers again" in quick[-1])
        close(back)
    assert not ended.is_set()


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail("it never came to that")
        time.sleep(0.02)


def test_a_new_client_of_prefects_waits_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens yet: each kind of client gives up at once, and afterwards tries again."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api/health"

    async def ask() -> int:
        async with PrefectHttpxAsyncClient() as client:
            return (await client.get(url)).status_code

    def ask_in_turn() -> int:
        with PrefectHttpxSyncClient() as client:
            return client.get(url).status_code

    for kind, call in ((PrefectHttpxAsyncClient, lambda: asyncio.run(ask())), (PrefectHttpxSyncClient, ask_in_turn)):
        with pytest.raises(httpx.ConnectError):
            call()
        # Undone after the test.
        monkeypatch.setattr(kind, "_has_connected", False, raising=False)
    retry_first_connections()
    servers: list[http.server.ThreadingHTTPServer] = []
    threading.Timer(1.0, lambda: servers.append(serve(port))).start()
    try:
        assert asyncio.run(ask()) == ask_in_turn() == 200
    finally:
        close(servers[0])


def test_what_libraries_say_goes_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "study.log"

    def fails() -> None:
        raise ValueError("in a thread")

    with log_to_file(log):
        logging.getLogger("some.library").warning("a warning of a library")
        sys.stderr.write("--- Error logging to API ---\n")
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
    assert capsys.readouterr().err == ""
    text = log.read_text(encoding="utf-8")
    for part in ("a warning of a library", "Error logging", "in a thread"):
        assert part in text
    sys.stderr.write("back")
    assert capsys.readouterr().err == "back"
