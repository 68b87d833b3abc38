"""Credentials in URIs, and how they stay out of whatever people read: messages, tracebacks, logs, tables.

One place knows what of a URI may be shown. Nothing here opens a URI.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import urllib.parse
from functools import lru_cache
from types import TracebackType
from typing import Any

# Variables whose value may be a URI with credentials.
URI_VARIABLES = ("SPARSE_PROBING_DATA", "PREFECT_API_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
HIDDEN = "***"
# Shorter ones are found in ordinary words; they are hidden in the URI alone.
_SHORTEST_SECRET = 6
# User and password of any URI, also where a path has made one slash of two: before an @; with a slash in the password;
# or without any @. What looks like a port is none.
_USERINFO = re.compile(
    r"""([A-Za-z][\w+.-]*:/{1,2})
    (?: [^/\s'"]*@
      | [^/\s'"@:\[]*:(?!\d+/)[^\s'"]*@
      | [^/\s'"@:\[]+:(?!\d+\W|\d+$)[^/\s'"]+ )""",
    re.VERBOSE,
)
# What says nothing secret in the query of a URI that pyarrow opens.
_SHOWN_OPTIONS = frozenset({"endpoint_override", "region", "scheme", "allow_bucket_creation", "allow_bucket_deletion"})
_OPTION = re.compile(r"""([?&])([^=&\s'"]+)=([^&\s'"]*)""")
_URI_WITH_QUERY = re.compile(r"""[A-Za-z][\w+.-]*:/{1,2}[^\s'"?]*\?[^\s'"]*""")


def shown_uri(uri: str) -> str:
    """A URI as people may see it: user, password and query are left out; a local path stays as it is."""
    if "://" not in uri:
        return uri
    userinfo = _userinfo(uri)
    scheme, _, rest = uri.partition("://")
    rest = rest[len(userinfo) + 1 :] if userinfo else rest
    return f"{scheme}://{rest.partition('?')[0]}"


def without_secrets(text: str) -> str:
    """A text without the credentials of any URI in it, and without those of this process's own URIs wherever they stand.

    Of the latter, percent-encoded and plain forms are both found.
    """
    for secret in _secrets(tuple(os.environ.get(name, "") for name in URI_VARIABLES)):
        text = text.replace(secret, HIDDEN)
    text = _USERINFO.sub(lambda found: f"{found[1]}{HIDDEN}{'@' if found[0].endswith('@') else ''}", text)
    return _URI_WITH_QUERY.sub(lambda found: _OPTION.sub(_option, found[0]), text)


def _option(found: re.Match[str]) -> str:
    return found[0] if found[2] in _SHOWN_OPTIONS else f"{found[1]}{found[2]}={HIDDEN}"


def _userinfo(uri: str) -> str:
    """User and password of a URI; also where characters are in them that should be percent-encoded, or the @ is missing."""
    rest = uri.partition("://")[2]
    head = rest.partition("/")[0]
    if "@" in head:
        return head.rpartition("@")[0]
    port = re.split(r"[?#]", head)[0].partition(":")[2]
    if not port or port.isdecimal():
        return ""
    return rest.rpartition("@")[0] or head


@lru_cache(maxsize=8)
def _secrets(uris: tuple[str, ...]) -> tuple[str, ...]:
    """All ways to write what must not be read of some URIs, the longest first."""
    found: set[str] = set()
    for uri in uris:
        if "://" not in uri:
            continue
        userinfo = _userinfo(uri)
        options = [option.partition("=") for option in uri.partition("?")[2].split("&")]
        hidden = [value for name, _, value in options if name not in _SHOWN_OPTIONS]
        for secret in (userinfo, *userinfo.split(":", 1), *hidden):
            plain = urllib.parse.unquote(secret)
            quoted = urllib.parse.quote(plain, safe="")
            lower = re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), quoted)
            found |= {secret, plain, quoted, lower, urllib.parse.quote(plain), urllib.parse.quote_plus(plain)}
            # As it stands in the repr or the JSON of a text.
            found |= {repr(plain)[1:-1], plain.replace("\\", "\\\\").replace('"', '\\"')}
    return tuple(sorted((one for one in found if len(one) >= _SHORTEST_SECRET), key=len, reverse=True))


def hide_in_logs() -> None:
    """Take credentials out of every record that is logged in this process from now on, its traceback included."""
    made_by = logging.getLogRecordFactory()
    if getattr(made_by, "hides_secrets", False):
        return

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = made_by(*args, **kwargs)
        try:
            message = record.getMessage()
        except Exception:  # formatting the record will raise it again
            return record
        clean = without_secrets(message)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            clean = without_secrets(text)
            if clean != text:
                record.exc_info, record.exc_text = None, clean
        return record

    make.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As `sys.excepthook`, without credentials."""
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
