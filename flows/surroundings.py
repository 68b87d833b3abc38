"""What a command needs of the machine around it, seen to before anything heavy is imported: environment, proxies, Prefect.

Nothing here imports Prefect; what is wrong is one line within seconds.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from sparse_probing.errors import InputError

# Set before Prefect, transformers or Great Expectations are imported; what the user has set stays.
ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "true",
    # Bars of libraries would be drawn across ours.
    "TQDM_DISABLE": "1",
}
# Where there is a server: a request is tried again after 2, 4, 8 … 128 s, so it may be away for four minutes.
PATIENCE = ("PREFECT_CLIENT_MAX_RETRIES", "7")
# Prefect's own clients, and every process started from here, read these.
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
ANSWER_SECONDS = 5.0


def prepare_environment() -> None:
    """Set what is not set, and keep what is on this machine away from proxies."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    excepted = [entry.strip() for entry in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")]
    both = ",".join(dict.fromkeys([*filter(None, excepted), *THIS_MACHINE]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = both
    if importlib.util.find_spec("socksio") is None:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            if os.environ[name].startswith("socks"):
                # Merely being set, it keeps every client from starting.
                print(
                    f"sparse-probing: {name}={os.environ[name]} is left out: a SOCKS proxy needs the package socksio.",
                    file=sys.stderr,
                )
                del os.environ[name]


def check_prefect() -> None:
    """Find out whether Prefect will be able to work here.

    Raises
    ------
    InputError
        If its folder cannot be written to, or the server that it is told to use does not answer or does not let us in.
    """
    check_prefect_home()
    api_url, source = prefect_setting("PREFECT_API_URL")
    if not api_url:
        return
    if not answers(api_url):
        raise InputError(
            f"The Prefect server at {api_url} ({source}) does not answer.",
            remedy="Start it (sparse-probing up starts one here), or unset it to run without a server.",
        )
    from flows.server_api import configured_server

    server = configured_server(api_url)
    # A key alone is for Prefect Cloud, which has no such page.
    if server.password or not server.api_key:
        server.find("admin/version")


def check_prefect_home() -> None:
    """Raise `InputError` unless Prefect's own folder can be written to."""
    from sparse_probing.settings import why_unwritable

    home = _prefect_home()
    reason = why_unwritable(home)
    if reason is not None:
        raise InputError(
            f"Prefect's folder {home} cannot be written to: {reason}.", remedy="Set PREFECT_HOME to a folder of yours."
        )


def server_in_use() -> str:
    """Address of the Prefect server that the environment or Prefect's settings name; empty if none does."""
    return prefect_setting("PREFECT_API_URL")[0]


def answers(api_url: str, *, timeout_seconds: float = ANSWER_SECONDS) -> bool:
    """Whether something at this address says that it is a healthy Prefect server, or asks for credentials."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout_seconds) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _prefect_home() -> Path:
    given = os.environ.get("PREFECT_HOME")
    try:
        return Path(given).expanduser() if given else Path.home() / ".prefect"
    except RuntimeError as error:
        raise InputError("This user has no home folder.", remedy="Set PREFECT_HOME to a folder of yours.") from error


def prefect_setting(name: str) -> tuple[str, str]:
    """One of Prefect's ``PREFECT_API_…`` settings and who gives it, looked for where Prefect does and in its order.

    Empty if nobody gives it. An empty value in the environment counts: it unsets what comes after.
    """
    if name in os.environ:
        return os.environ[name], name
    for line in _text(Path(".env")).splitlines():
        key, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and key.strip().upper() == name:
            return value.strip().strip("'\""), f"{name} in .env"
    key = name.removeprefix("PREFECT_API_").lower()
    for file, head in (("prefect.toml", ("api",)), ("pyproject.toml", ("tool", "prefect", "api"))):
        value = _entry(_toml(Path(file)), *head, key)
        if value:
            return value, f"api.{key} in {file}"
    home = _prefect_home()
    profiles = _toml(Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser())
    profile = os.environ.get("PREFECT_PROFILE") or _entry(profiles, "active")
    value = _entry(profiles, "profiles", profile, name)
    return (value, f"Prefect's profile {profile!r}") if value else ("", "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except ValueError:
        return {}


def _entry(found: Any, *keys: str) -> str:
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return "" if found is None else str(found)
