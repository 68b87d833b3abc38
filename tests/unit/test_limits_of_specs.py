"""What no run could end well with is refused when a spec is made: numbers without end, counts past memory, names past files."""

from __future__ import annotations

import collections.abc
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from sparse_probing.config import (
    MAX_COUNT,
    MAX_DRAWS,
    MAX_NAME_BYTES,
    CollectionSpec,
    ExtractionSpec,
    ModelSpec,
    ProbingSpec,
    StudySpec,
    digest,
    load_profile,
)
from sparse_probing.datasets.registry import collection_names, get_collection
from sparse_probing.errors import InputError

SPECS = (ModelSpec, CollectionSpec, ExtractionSpec, ProbingSpec, StudySpec)
OPTIONS = tuple(get_collection(name).options_model for name in collection_names())
REQUIRED: Mapping[type[BaseModel], dict[str, Any]] = {
    ModelSpec: {"id": "model"},
    CollectionSpec: {"collection": "position"},
    StudySpec: {"name": "s", "models": [{"id": "model"}], "collections": [{"collection": "position"}]},
}


def numbers(annotation: Any) -> set[type]:
    """The kinds of numbers that a field may hold, at any depth."""
    if annotation in (int, float):
        return {annotation}
    return set().union(*(numbers(part) for part in typing.get_args(annotation))) if annotation is not bool else set()


def fields_with(kind: type) -> Iterator[tuple[type[BaseModel], str]]:
    for model in dict.fromkeys((*SPECS, *OPTIONS)):
        for name, field in model.model_fields.items():
            if kind in numbers(field.annotation):
                yield model, name


def shaped(annotation: Any, value: float) -> Any:
    """A value in the shape that a field has."""
    if typing.get_origin(annotation) is tuple:
        inner = [part for part in typing.get_args(annotation) if part is not Ellipsis]
        return [shaped(part, value) for part in inner]
    if typing.get_origin(annotation) is collections.abc.Mapping:
        return {"method": shaped(typing.get_args(annotation)[1], value)}
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    return shaped(parts[0], value) if parts else value


def made_with(model: type[BaseModel], name: str, value: float) -> BaseModel:
    given = REQUIRED.get(model, {"path": "texts"} if "path" in model.model_fields else {})
    if "classes" in model.model_fields:
        given = given | {"classes": ["a", "b"]}
    return model.model_validate(given | {name: shaped(model.model_fields[name].annotation, value)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("model", "name"), [*fields_with(float)])
def test_every_number_with_a_point_is_finite(model: type[BaseModel], name: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        made_with(model, name, value)


@pytest.mark.parametrize("value", [-1, MAX_COUNT * 10, 2**70])
@pytest.mark.parametrize(("model", "name"), [*fields_with(int)])
def test_every_whole_number_has_two_ends(model: type[BaseModel], name: str, value: int) -> None:
    with pytest.raises(ValidationError):
        made_with(model, name, value)


def test_the_walk_finds_the_fields() -> None:
    whole = {name for _, name in fields_with(int)}
    assert {"seed", "n_bootstrap", "k_values", "k_values_by_method", "layers", "neurons", "max_rows"} <= whole
    assert {"split_fractions", "optimal_time_limit_seconds", "prevalence_floor"} <= {n for _, n in fields_with(float)}


@pytest.mark.parametrize("name", ["n_bootstrap", "n_permutations"])
def test_draws_fit_memory(name: str) -> None:
    assert getattr(ProbingSpec(**{name: MAX_DRAWS}), name) == MAX_DRAWS
    with pytest.raises(ValidationError, match="10000"):
        ProbingSpec(**{name: 10**8})
    # Intervals of a long shortlist are drawn for some neurons at a time.
    ProbingSpec(n_bootstrap=10_000, shortlist=100_000)


def test_no_layer_is_not_all_layers() -> None:
    with pytest.raises(ValidationError, match="nothing for all layers"):
        ExtractionSpec(layers=())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "n" * 300}, "name: it has 300 bytes; expected a name of 1 to 180"),
        ({"name": "語" * 61}, "name: it has 183 bytes"),
        ({"name": " "}, "name: it has 1 bytes"),
        ({"name": "two\nlines"}, r"name: it holds the character '\n'"),
        ({"models": [{"id": "m", "name": "n" * 300}]}, "models.0: the model's name has 300 bytes"),
        ({"models": [{"id": "folder/" + "n" * 200}]}, "models.0: the model's name has 200 bytes"),
        ({"models": [{"id": "/"}]}, "models.0: the model's name has 0 bytes"),
        ({"models": [{"id": "a\0b"}]}, r"models.0.id: it holds the character '\x00'"),
        ({"models": [{"id": "m", "revision": "../other"}]}, "models.0.revision: expected a branch, tag"),
        ({"models": [{"id": "m", "revision": "/root"}]}, "models.0.revision: expected a branch, tag"),
        ({"models": [{"id": "m", "revision": "r" * 300}]}, "models.0.revision: it has 300 bytes"),
        ({"probing": {"seed": -1}}, "probing.seed: Input should be greater than or equal to 0 (found -1)"),
        ({"probing": {"n_bootstrap": 10**8}}, "probing.n_bootstrap: Input should be less than or equal to 10000"),
    ],
)
def test_a_profile_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    study = {"name": "s", "models": [{"id": "m"}], "collections": [{"collection": "position"}]} | change
    lines = [f"{key} = {json.dumps(study[key])}" for key in study if isinstance(study[key], str)]
    for key in ("models", "collections"):
        for table in study[key]:  # type: ignore[attr-defined]
            lines += [f"[[{key}]]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
    lines += ["[probing]", *(f"{name} = {value}" for name, value in change.get("probing", {}).items())]
    path = tmp_path / "p.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_profile(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_people_use_stay() -> None:
    ModelSpec(id="owner/name", name="EleutherAI/pythia-70m at step 512", revision="refs/pr/12")
    ModelSpec(id="n" * MAX_NAME_BYTES, revision="v1..2")
    ModelSpec(id="/models/größe\u00a0eins")


def test_limits_change_no_digest() -> None:
    """Finished work is found again: a limit is no part of a spec."""
    assert digest(ProbingSpec()) == "61951e67f4cb9148c92140da9095fe043550d0041057a74abc9868c91a891660"
    assert digest(ExtractionSpec()) == "88bffed4ba75ae7fbc8f6e863bb2daf080a5e001b2d60a8040330b6d47c53a2b"
    assert (
        digest(CollectionSpec(collection="position"))
        == "1eb98d2ae8f1f90b8cf1ae8ab32cb462b08d08befefb6b0506a8ea39c1a432e1"
    )
