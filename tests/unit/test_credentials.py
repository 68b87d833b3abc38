"""Keys and passwords in a URI are read nowhere: no message, traceback, log, file or terminal shows them."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from flows.failures import as_one_line
from flows.logs import log_to_file
from sparse_probing.config import load_profile
from sparse_probing.credentials import HIDDEN, hide_in_logs, shown_uri, without_secrets
from sparse_probing.errors import InputError, SparseProbingError
from sparse_probing.settings import load_settings
from sparse_probing.store.filesystem import Location

ROOT = Path(__file__).parents[2]
KEY = "AKIAEXAMPLEKEY"
# A slash, a plus and an equals sign, as real keys have them.
SECRET = "wJalr/UtnFEMI+K7MDENG=bPxRfiCY"
ENCODED = urllib.parse.quote(SECRET, safe="")
TOKEN = "tok-1234567890-secret"
LOWER = ENCODED.replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d")
FORMS = (KEY, SECRET, ENCODED, LOWER, urllib.parse.quote(SECRET), "wJalr", "bPxRfiCY", TOKEN)


def closed_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def uris() -> dict[str, str]:
    """Ways to write a data folder with credentials, well and badly."""
    endpoint = f"endpoint_override=127.0.0.1:{closed_port()}&scheme=http&region=us-east-1"
    return {
        "unreachable": f"s3://{KEY}:{ENCODED}@bucket/data?{endpoint}",
        "not encoded": f"s3://{KEY}:{SECRET}@bucket/data?{endpoint}",
        "unknown option": f"s3://{KEY}:{ENCODED}@bucket/data?session_token={TOKEN}",
        "unknown scheme": f"s5://{KEY}:{ENCODED}@bucket/data",
        "no bucket": f"s3://{KEY}:{ENCODED}",
        "azure": f"abfs://{KEY}:{ENCODED}@account.dfs.core.windows.net/c?sas_token={TOKEN}&other=1",
    }


def clean(text: str) -> bool:
    return not any(form in text for form in FORMS)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("data", "data"),
        ("/a/b@c:d", "/a/b@c:d"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("s3://bucket/activations/tiny@main", "s3://bucket/activations/tiny@main"),
        ("s3://bucket/x?region=a", "s3://bucket/x"),
        (f"s3://{KEY}:{ENCODED}@bucket/x?a={TOKEN}", "s3://bucket/x"),
        (f"s3://{KEY}:{SECRET}@bucket/x", "s3://bucket/x"),
        (f"s3://{KEY}:SE?CR#ET@bucket/x", "s3://bucket/x"),
        (f"s3://{KEY}:{ENCODED}/x", "s3://x"),
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200/api"),
        ("http://me:password@host:4200/api", "http://host:4200/api"),
    ],
)
def test_a_uri_is_shown_without_user_password_and_options(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown


def test_texts_lose_what_is_secret_and_nothing_else() -> None:
    for uri in uris().values():
        assert clean(without_secrets(f"Cannot open '{uri}' or {Path(uri).absolute()}, sorry.")), uri
    for text in (
        "activations/tiny@main at s3://bucket/activations/tiny@main",
        "http://127.0.0.1:4200/api went away, write to a@b.org",
        "s3://bucket/x?region=eu&endpoint_override=127.0.0.1:9",
        "Model 'package:name' and Name:/x",
        "http://localhost:4200, http://[::1]:4200/api and http://127.0.0.1:4200",
    ):
        assert without_secrets(text) == text


@pytest.mark.parametrize("form", [SECRET, ENCODED, LOWER, repr(SECRET), urllib.parse.quote(SECRET)])
def test_the_data_folders_own_secrets_are_hidden_alone_too(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("SPARSE_PROBING_DATA", f"s3://{KEY}:{ENCODED}@bucket/data")
    assert clean(without_secrets(f"the library said: {form}."))
    error = SparseProbingError(f"It said {form}.", remedy=f"Not {form}.")
    assert clean(str(error) + error.message + error.remedy + repr(error) + str(pickle.loads(pickle.dumps(error))))
    assert HIDDEN in str(error)


@pytest.mark.parametrize("name", uris())
def test_a_location_says_what_is_wrong_without_credentials(name: str) -> None:
    uri = uris()[name]
    if name == "unreachable":
        location = Location.open(uri)
        assert clean(str(location) + repr(location) + str(location / "file"))
        return
    with pytest.raises(InputError) as caught:
        Location.open(uri)
    assert clean(str(caught.value)), caught.value
    assert caught.value.__suppress_context__


def test_settings_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_PROBING_DATA", uris()["unreachable"])
    settings = load_settings()
    assert settings.data_uri == os.environ["SPARSE_PROBING_DATA"]
    assert clean(repr(settings) + str(settings) + settings.shown_data)
    assert settings.shown_data == "s3://bucket/data"


def test_an_unexpected_error_is_cut_after_its_secrets_are_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of a secret, at the end of a line that is cut, would not be known for one."""
    monkeypatch.setenv("SPARSE_PROBING_DATA", f"s3://{KEY}:{ENCODED}@bucket/data")
    for length in range(240, 310, 7):
        assert clean(str(as_one_line(OSError("x" * length + f" {SECRET}"), log=tmp_path / "log")))
    profile = tmp_path / "p.toml"
    for length in range(0, 80, 9):
        profile.write_text(f'name = "s"\nmodels = ["{"x" * length} s3://{KEY}:{ENCODED}@bucket/m"]\n', encoding="utf-8")
        with pytest.raises(InputError) as caught:
            load_profile(str(profile))
        assert clean(str(caught.value)), length


def test_logs_and_their_tracebacks_show_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"s3://{KEY}:{ENCODED}@bucket/data"
    monkeypatch.setenv("SPARSE_PROBING_DATA", uri)
    log = tmp_path / "logs" / "study.log"
    # Prefect would warn of lines outside of any flow that it cannot send.
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}), log_to_file(log):
        logging.getLogger("prefect.task_runs").warning("data in %s with %r", uri, {"secret": SECRET})
        try:
            raise OSError(f"cannot reach {uri}: {SECRET}")
        except OSError:
            logging.getLogger("prefect.flow_runs").exception("Encountered an exception:")
        print(f"a library writes {SECRET} of {uri}", file=sys.stderr)
    text = log.read_text()
    assert "cannot reach s3://***" in text
    assert "Traceback" in text
    assert "a library writes ***" in text
    assert clean(text)
    assert clean(caplog.text)
    before = logging.getLogRecordFactory()
    hide_in_logs()
    assert logging.getLogRecordFactory() is before


PROFILE = """
name = "s"
[[models]]
id = "{model}"
[[collections]]
collection = "position"
[collections.options]
path = "{path}"
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"num_hidden_layers": 2, "intermediate_size": 32}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


COMMANDS = """
import contextlib, io, json, os, sys, traceback
from flows.cli import main
for uri, arguments in json.loads(sys.argv[1]):
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        try:
            code = main(["--data", uri, *arguments])
        except Exception:
            code = traceback.format_exc()
    print(json.dumps([code, out.getvalue(), said.getvalue()]))
"""


def test_no_command_shows_or_writes_a_credential(tmp_path: Path, model: Path) -> None:
    import json

    (tmp_path / "texts.csv").write_text("text\na\n", encoding="utf-8")
    profiles = {"good": (str(model), str(tmp_path / "texts.csv"))}
    given = f"s3://{KEY}:{ENCODED}@bucket/x"
    profiles |= {"model": (given, "texts.csv"), "path": (str(model), given)}
    for name, (model_id, path) in profiles.items():
        (tmp_path / f"{name}.toml").write_text(PROFILE.format(model=model_id, path=path), encoding="utf-8")
    lines: list[tuple[str, list[str]]] = []
    for uri in uris().values():
        lines += [(uri, [command, "--profile", "good.toml"]) for command in ("study", "estimate", "extract")]
        lines += [
            (uri, ["check"]),
            (uri, ["report"]),
            (uri, ["sql", "select 1"]),
            (uri, ["neurons", "export", "lists"]),
        ]
    lines += [("data", ["study", "--profile", f"{name}.toml"]) for name in ("model", "path")]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert clean(done.stderr), done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (uri, arguments), (code, out, said) in zip(lines, answers, strict=True):
        assert code == 2, (arguments, code, said)
        assert len(said.splitlines()) == 1, (uri, arguments, said)
        assert clean(out + said), (arguments, out, said)
    reached = [said for (_, arguments), (_, _, said) in zip(lines, answers, strict=True) if arguments[0] == "study"]
    assert "Data folder s3://bucket/data cannot be reached: " in reached[0]
    assert "Cannot open 's3://bucket/data': " in reached[1]
    for path in tmp_path.rglob("*"):
        if path.is_file() and path not in before:
            assert clean(path.read_bytes().decode(errors="replace")), path
