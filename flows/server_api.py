"""Asking a Prefect server over HTTP without importing Prefect: credentials, CSRF tokens, one line for a refusal."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from typing import Any

from flows.surroundings import prefect_setting
from sparse_probing.errors import InputError, SparseProbingError

# A server that was just started anew has all its clients to answer at once.
ASK_SECONDS = 90.0
# Too much to do at the moment: as Prefect's own clients, ask again after 1, 2, 4 … s.
BUSY = (429, 502, 503)
TRIES = 6
PASSWORD_FILE = "prefect-password"
# A filter is answered with so many entries at a time.
PAGE = 200


@dataclass(frozen=True)
class Server:
    """A Prefect server and what it is told of us.

    Attributes
    ----------
    api_url:
        Its address, ending in ``/api``.
    password:
        ``user:password``, sent to this server alone; empty if there is none.
    api_key:
        Prefect Cloud's key, sent where there is no password.
    source:
        Who gives password or key, as a user would look for it.
    """

    api_url: str
    password: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    source: str = ""

    def environment(self) -> dict[str, str]:
        """What a process started from here needs to talk to this server, and to send it nothing else."""
        return {
            "PREFECT_API_URL": self.api_url,
            "PREFECT_API_AUTH_STRING": self.password,
            "PREFECT_API_KEY": self.api_key,
        }

    def ask(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """What the API answers: to GET without a body, to POST (or `method`) with one.

        Raises
        ------
        InputError
            If the server asks for credentials that it was not given.
        SparseProbingError
            If it does not answer, or answers with an error.
        """
        try:
            return self._send_until_done(path, body, method)
        except urllib.error.HTTPError as error:
            raise self._refusal(error.code, path, _detail(error)) from error

    def ask_all(self, path: str, body: dict[str, Any], *, most: int | None = None) -> list[dict[str, Any]]:
        """All that a filter finds, page by page, or the first `most`; raises as `ask`."""
        found: list[dict[str, Any]] = []
        while most is None or len(found) < most:
            size = PAGE if most is None else min(PAGE, most - len(found))
            page = self.ask(path, body | {"limit": size, "offset": len(found)})
            found += page
            if len(page) < size:
                break
        return found

    def find(self, path: str) -> Any:
        """What the API answers to GET; None if there is no such thing. Raises as `ask` does."""
        try:
            return self._send_until_done(path, None, None)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise self._refusal(error.code, path, _detail(error)) from error

    def is_open(self) -> bool:
        """Whether it does what anybody asks, without a password."""
        try:
            Server(self.api_url).ask("admin/version")
        except SparseProbingError:
            return False
        return True

    def _send_until_done(self, path: str, body: Any, method: str | None) -> Any:
        for n_tried in range(1, TRIES):
            try:
                return self._send(path, body, method)
            except urllib.error.HTTPError as error:
                if error.code not in BUSY:
                    raise
                time.sleep(2.0 ** (n_tried - 1))
        return self._send(path, body, method)

    def _send(self, path: str, body: Any, method: str | None) -> Any:
        changes = body is not None or method not in (None, "GET")
        headers = {"Content-Type": "application/json", **self._credentials()}
        if changes:
            headers |= self._csrf_token()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api_url}/{path}", data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=ASK_SECONDS) as answer:
                text = answer.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise SparseProbingError(
                f"The Prefect server at {self.api_url} does not answer: {getattr(error, 'reason', error)}.",
                remedy="Start it, or mend PREFECT_API_URL.",
            ) from error
        return json.loads(text) if text else None

    def _credentials(self) -> dict[str, str]:
        if self.password:
            return {"Authorization": f"Basic {base64.b64encode(self.password.encode()).decode()}"}
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def _csrf_token(self) -> dict[str, str]:
        """Headers without which a server with CSRF protection changes nothing; none where it has no such protection."""
        client = str(uuid.uuid4())
        try:
            token = self._send(f"csrf-token?client={client}", None, None)
        except urllib.error.HTTPError as error:
            # 422: the protection is off. 404: the server is older than it.
            if error.code in (404, 422):
                return {}
            raise
        return {"Prefect-Csrf-Token": token["token"], "Prefect-Csrf-Client": client}

    def _refusal(self, code: int, path: str, detail: str) -> SparseProbingError:
        if code in (401, 403):
            return refused(self, code)
        return SparseProbingError(
            f"The Prefect server at {self.api_url} answers {code} to {path.split('?')[0]}{detail}.",
            remedy="Its log says more.",
        )


def refused(server: Server, code: int) -> InputError:
    """The error for a server that does not let us in."""
    found = (
        f"does not accept what {server.source} gives" if server.password or server.api_key else "asks for a password"
    )
    return InputError(
        f"The Prefect server at {server.api_url} {found} ({code}).",
        remedy="Set PREFECT_API_AUTH_STRING to the server's user:password; sparse-probing up keeps its own in the file "
        f"{PASSWORD_FILE} of the data folder that it was run with.",
    )


def configured_server(api_url: str) -> Server:
    """The server at this address, with the credentials that the environment or Prefect's settings give for it."""
    password, password_from = prefect_setting("PREFECT_API_AUTH_STRING")
    api_key, key_from = prefect_setting("PREFECT_API_KEY")
    return Server(api_url.rstrip("/"), password, api_key, password_from or key_from)


def _detail(error: urllib.error.HTTPError) -> str:
    """What the server says in words, for the end of a sentence."""
    try:
        found = json.loads(error.read())
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    if not isinstance(found, dict):
        return ""
    said = found.get("detail") or found.get("exception_message")
    wrong = found.get("exception_detail")
    if wrong and isinstance(wrong, list) and isinstance(wrong[0], dict):
        said = f"{str(said).rstrip('.')}: {wrong[0].get('msg')}"
    return f": {' '.join(str(said).split())[:300].rstrip('.')}" if said else ""
