"""Mistakes in what a user wrote, told in one line: the nearest names that exist, and what a spec says of a wrong value.

Words only: the code that finds a mistake raises it as `errors.InputError`.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sparse_probing.credentials import without_secrets

# Names less alike than this are not worth proposing.
LEAST_LIKENESS = 0.6
# Of a long list of names so many are shown, the nearest first.
MOST_NAMES = 40
# What is no name but a whole text is cut after so many characters.
MOST_CHARS = 200


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names, those most like `name` first; case does not count, and equally like ones keep their order."""
    return sorted(dict.fromkeys(known), key=lambda other: -_likeness(name, other))


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, case aside; None if none is like it."""
    alike: dict[str, str] = {}
    for other in known:
        alike.setdefault(other.casefold(), other)
    near = difflib.get_close_matches(name.casefold(), list(alike), n=1, cutoff=LEAST_LIKENESS)
    return alike[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean french?`` to end a sentence about a name that is unknown, or a full stop if none is like it."""
    near = closest(name, known)
    return f"; did you mean {near}?" if near else "."


def did_you_mean_path(path: Path) -> str:
    """The same for a path that does not exist, from what lies in its folder."""
    folder = path.parent
    near = closest(path.name, sorted(found.name for found in folder.iterdir()) if folder.is_dir() else [])
    return f"; did you mean {folder / near}?" if near else "."


def choices(name: str, known: Iterable[str], *, also: Iterable[str] = ()) -> str:
    """``did you mean french? Known: french, greek``: all names that exist, the nearest first.

    Names in `also` are proposed where they are meant, but not listed.
    """
    names = nearest(name, known)
    near = closest(name, [*names, *also])
    return f"did you mean {near}? Known: {listed(names)}" if near else f"known: {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """Names with commas between; the tail of a long list is counted instead, and that of a long name left out."""
    shown = [name if len(name) <= MOST_CHARS else f"{name[:MOST_CHARS]}…" for name in names[:MOST_NAMES]]
    if len(names) <= MOST_NAMES:
        return ", ".join(shown) or "none"
    return f"{', '.join(shown)} and {len(names) - MOST_NAMES} more"


def explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """Where the first mistake is, such as ``probing.ranking``, and one line about it with the number of the others.

    Keys that do not exist come first: a misspelt key is often why another is missing.
    """
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    first = found[0]
    kind, value = first["type"], first.get("input")
    path = [part for part in first["loc"] if isinstance(part, str)]
    where = ".".join(str(part) for part in first["loc"])
    if kind == "extra_forbidden":
        text = f"no such key; {_key_meant(model, path)}"
    elif kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
        text = f"{_shown(value)} is not allowed; {choices(str(value), allowed)}"
    elif kind == "tuple_type" and isinstance(value, Mapping):
        text = f"one table is given, a list of them is expected: write [[{where}]]"
    else:
        text = _in_words_of_toml(first["msg"])
        if kind != "missing" and not isinstance(value, Mapping):
            text += f" (found {_shown(value)})"
    others = len(found) - 1
    more = f" (and {others} more mistake{'s' if others > 1 else ''})" if others else ""
    return where, " ".join(f"{text}{more}".split())


def _shown(value: object) -> str:
    """A value as its profile has it, cut where it is long; credentials go before, since what is cut is not known for one."""
    return without_secrets(repr(value))[:80]


def _key_meant(model: type[BaseModel], path: Sequence[str]) -> str:
    """The key that was meant in place of an unknown one, or the section that it belongs to."""
    key = path[-1]
    known = list(_model_at(model, path[:-1]).model_fields)
    homes = [] if closest(key, known) else _sections_with(model, key)
    return f"it belongs {' or '.join(homes)}" if homes else choices(key, known)


def _sections_with(model: type[BaseModel], key: str) -> list[str]:
    """Where in a profile a key stands, as the end of ``it belongs …``."""
    inner = {name: _model_in(field.annotation) for name, field in model.model_fields.items()}
    if key in inner:
        return ["in a section of its own" if inner[key] else "at the top, above the first section"]
    return [f"in {name}" for name, section in inner.items() if section is not None and key in section.model_fields]


def _in_words_of_toml(message: str) -> str:
    """A message of pydantic's with TOML's words for what a value is."""
    message = message.removeprefix("Value error, ")
    message = re.sub(r"valid dictionary( or instance of \w+)?", "table", message)
    return message.replace("valid tuple", "list").replace("Tuple should", "List should")


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name.casefold(), other.casefold()).ratio()


def _model_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """The model that the keys of a path lead to; lists on the way are looked through."""
    for part in path:
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field is not None else None
        if inner is None:
            return model
        model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part)) is not None), None)
