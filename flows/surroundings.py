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
        If its folder cannot be written to, or the server that it is told to use does not answer.
    """
    check_prefect_home()
    api_url, source = _configured_server(_prefect_home())
    if api_url and not answers(api_url):
        raise InputError(
            f"The Prefect server at {api_url} ({source}) does not answer.",
            remedy="Start it (sparse-probing up starts one here), or unset it to run without a server.",
        )


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
    """Address of the Prefect server that the environment or Prefect's active profile names; empty if none does."""
    return _configured_server(_prefect_home())[0]


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


def _configured_server(home: Path) -> tuple[str, str]:
    """The server that the environment or Prefect's active profile names, and who names it; empty if none does."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"], "PREFECT_API_URL"
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    try:
        found = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "", ""
    name = os.environ.get("PREFECT_PROFILE") or found.get("active", "")
    url = found.get("profiles", {}).get(name, {}).get("PREFECT_API_URL", "")
    return str(url), f"Prefect's profile {name!r}"
