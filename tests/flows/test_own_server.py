"""The password of the server that `up` starts: who can read it, and who is sent it."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import own_server
from flows.own_server import enter_server, password, password_file, server_at, state_file, write_state
from flows.server_api import Server
from flows.surroundings import PATIENCE, check_prefect, prefect_setting
from sparse_probing.errors import InputError, SparseProbingError
from sparse_probing.settings import Settings

# A server of another process that answers as Prefect's does, and notes what it is sent.
PLAYED = """
import http.server, json, sys
token, secret, log, busy = "t0", sys.argv[1], sys.argv[2], []
class Played(http.server.BaseHTTPRequestHandler):
    def reply(self, code, body):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())
    def do_GET(self):
        with open(log, "a") as stream:
            stream.write(json.dumps([self.command, self.path, dict(self.headers)]) + "\\n")
        if self.path == "/api/health":
            return self.reply(200, True)
        if secret and self.headers.get("Authorization") != secret:
            return self.reply(401, {"exception_message": "Unauthorized"})
        if self.path.startswith("/api/csrf-token"):
            return self.reply(200, {"token": token})
        if self.command != "GET" and self.headers.get("Prefect-Csrf-Token") != token:
            return self.reply(403, {"detail": "Missing CSRF token."})
        if self.path == "/api/nothing":
            return self.reply(404, {"detail": "Not found"})
        if self.path == "/api/busy":
            busy.append(1)
            return self.reply(200 if len(busy) > 2 else 503, "done")
        if self.path == "/api/broken":
            return self.reply(500, {"exception_message": "It broke."})
        self.reply(200, "ok")
    do_POST = do_PATCH = do_GET
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Played)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


class Played:
    """A played server's address, process and notes."""

    def __init__(self, folder: Path, secret: str = "") -> None:
        self.log = folder / "requests"
        self.log.touch()
        wanted = f"Basic {base64.b64encode(secret.encode()).decode()}" if secret else ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PLAYED, wanted, str(self.log)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.api_url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/api"

    def sent(self) -> list[tuple[str, str, dict[str, str]]]:
        return [tuple(json.loads(line)) for line in self.log.read_text().splitlines()]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in (*Server("").environment(), PATIENCE[0], "PREFECT_PROFILE"):
        # Set first, so that what a test sets is unset after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return Settings(data_uri=str(tmp_path), local_dir=tmp_path, device="cpu")


@pytest.fixture
def own(settings: Settings) -> Iterator[Played]:
    """A server that `up` started here."""
    played = Played(settings.local_dir, password(settings))
    entry = {"pid": played.process.pid, "created": psutil.Process(played.process.pid).create_time()}
    write_state(settings, {"api_url": played.api_url, "protected": True, "server": entry})
    yield played
    played.stop()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Played]:
    """A server that somebody else started."""
    (tmp_path / "other").mkdir()
    played = Played(tmp_path / "other", "lab:secret")
    yield played
    played.stop()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_read_the_files_at_any_moment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (modes.append(mode(self)), replace(self, to))[1])
    before = os.umask(0)
    try:
        known = password(settings)
        write_state(settings, {})
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]
    assert mode(password_file(settings)) == mode(state_file(settings)) == 0o600
    user, _, secret = known.partition(":")
    assert user
    assert len(secret) >= 32
    assert password(settings) == known, "it stays, so that a browser needs to be told once"
    state_file(settings).chmod(0o644)
    write_state(settings, {})
    assert mode(state_file(settings)) == 0o600


def test_a_password_that_others_could_read_is_replaced(settings: Settings) -> None:
    known = password(settings)
    password_file(settings).chmod(0o640)
    assert password(settings) != known
    assert mode(password_file(settings)) == 0o600


def test_a_running_servers_password_that_is_gone_is_one_line(settings: Settings, own: Played) -> None:
    password_file(settings).chmod(0o644)
    with pytest.raises(InputError, match="others can read"):
        own_server.running_server(settings)
    assert not own.sent() or all("Authorization" not in headers for _, _, headers in own.sent())
    password_file(settings).unlink()
    with pytest.raises(InputError, match="sparse-probing down, then sparse-probing up"):
        enter_server(settings)
    assert not password_file(settings).exists()


def test_the_own_server_is_sent_its_password_whatever_the_environment_says(
    settings: Settings, own: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "lab:secret")
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_key")
    monkeypatch.setenv("PREFECT_API_URL", own.api_url.replace("127.0.0.1", "localhost") + "/")
    server = server_at(os.environ["PREFECT_API_URL"], settings)
    assert server.ask("work_pools/filter", {}) == "ok"
    assert "lab:secret" not in repr(server.environment())
    enter_server(settings)
    assert os.environ["PREFECT_API_AUTH_STRING"] == password(settings)
    assert os.environ["PREFECT_API_KEY"] == ""


def test_no_other_server_is_sent_the_password(
    settings: Settings, own: Played, other: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As exported by who followed what `up` prints; then another server is named.
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", password(settings))
    monkeypatch.setenv("PREFECT_API_URL", other.api_url)
    with pytest.raises(InputError, match="asks for a password"):
        server_at(other.api_url, settings).ask("admin/version")
    enter_server(settings)
    assert os.environ["PREFECT_API_AUTH_STRING"] == ""
    assert other.sent()
    assert all("Authorization" not in headers for _, _, headers in other.sent())


def test_who_came_to_have_the_port_is_sent_nothing(settings: Settings, own: Played, other: Played) -> None:
    state = own_server.read_state(settings)
    # The recorded process lives, and another one listens at its port.
    write_state(settings, state | {"api_url": other.api_url})
    assert own_server.running_server(settings) is None
    assert all("Authorization" not in headers for _, _, headers in other.sent())


def test_a_dead_servers_port_is_not_asked(settings: Settings, own: Played) -> None:
    assert own_server.running_server(settings) is not None
    own.stop()
    assert own_server.running_server(settings) is None


def test_the_environment_names_the_own_server_by_itself(settings: Settings, own: Played) -> None:
    enter_server(settings)
    assert os.environ["PREFECT_API_URL"] == own.api_url
    assert os.environ["PREFECT_API_AUTH_STRING"] == password(settings)


def test_changes_carry_a_csrf_token_and_errors_are_one_line(settings: Settings, own: Played) -> None:
    server = server_at(own.api_url, settings)
    assert server.ask("x", {"active": True}, method="PATCH") == "ok"
    assert [method for method, path, _ in own.sent() if "csrf" in path or path == "/api/x"] == ["GET", "PATCH"]
    assert server.find("nothing") is None
    assert server.ask("busy") == "done", "asked again until it was not too busy"
    with pytest.raises(SparseProbingError, match=r"answers 500 to broken: It broke\."):
        server.ask("broken")
    with pytest.raises(SparseProbingError, match="does not answer"):
        Server("http://127.0.0.1:9/api").ask("x")
    assert not server.is_open()


def test_the_remedy_for_a_wrong_password_says_who_gave_it(
    settings: Settings, other: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", other.api_url)
    for given, expected in (("lab:wrong", "does not accept what PREFECT_API_AUTH_STRING gives"), ("", "asks for")):
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", given)
        with pytest.raises(InputError, match=expected) as caught:
            check_prefect()
        assert "\n" not in str(caught.value)
        assert "PREFECT_API_AUTH_STRING" in caught.value.remedy
    # A key alone is Prefect Cloud's to judge.
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_key")
    check_prefect()
    # What the remedy says works.
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "lab:secret")
    check_prefect()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (".env", "PREFECT_API_AUTH_STRING='lab:secret'\n"),
        ("prefect.toml", '[api]\nauth_string = "lab:secret"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nauth_string = "lab:secret"\n'),
        ("home/profiles.toml", 'active = "lab"\n[profiles.lab]\nPREFECT_API_AUTH_STRING = "lab:secret"\n'),
    ],
)
def test_settings_are_found_where_prefect_finds_them(settings: Settings, file: str, text: str) -> None:
    path = settings.local_dir / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    found, source = prefect_setting("PREFECT_API_AUTH_STRING")
    assert found == "lab:secret"
    assert source
    code = "from prefect.settings import get_current_settings as s; print(s().api.auth_string.get_secret_value())"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert theirs.stdout.strip() == found
