"""A new profile holds every key of every spec and runs; a collection's page holds every option."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from flows.cli import main
from sparse_probing.config import (
    CheckpointsSpec,
    CollectionSpec,
    ExtractionSpec,
    ModelSpec,
    ProbingSpec,
    StudySpec,
    load_profile,
)
from sparse_probing.datasets.registry import collection_names, get_collection
from sparse_probing.errors import InputError
from sparse_probing.preflight import check_names, preflight
from sparse_probing.profile_keys import collection_page, keys, profile_text, toml, write_profile
from sparse_probing.settings import Settings

SECTIONS = {"[[models]]": ModelSpec, "[[collections]]": CollectionSpec, "[extraction]": ExtractionSpec}
SECTIONS |= {"[probing]": ProbingSpec, "[checkpoints]": CheckpointsSpec}


def sections(text: str) -> dict[str, dict[str, str]]:
    """Heading (with the collection where there are several) to its lines by key, ``#`` or not."""
    found: dict[str, dict[str, str]] = {"": {}}
    heading, collection = "", ""
    for line in text.splitlines():
        bare = line.removeprefix("#")
        if bare.startswith("["):
            heading = bare if bare != "[collections.options]" else f"{collection} options"
            found.setdefault(heading, {})
        elif bare and not bare.startswith(" "):
            key = bare.split(" = ")[0]
            collection = bare.split('"')[1] if key == "collection" else collection
            found[heading].setdefault(key, line)
    return found


def test_every_field_of_every_spec_is_in_a_new_profile() -> None:
    found = sections(profile_text(Path("mine.toml")))
    for heading, spec in SECTIONS.items():
        assert set(spec.model_fields) - {"options"} <= set(found[heading]), heading
    plain = set(StudySpec.model_fields) - {"models", "collections", "extraction", "probing", "checkpoints"}
    assert set(found[""]) == plain
    for name in collection_names():
        assert set(found[f"{name} options"]) == set(get_collection(name).options_model.model_fields), name


def test_every_key_has_a_description() -> None:
    models = [StudySpec, *SECTIONS.values(), *(get_collection(name).options_model for name in collection_names())]
    assert [name for model in models for name, field in model.model_fields.items() if not field.description] == []


def test_each_line_is_toml_and_a_default_changes_nothing(tmp_path: Path) -> None:
    text = profile_text(Path("mine.toml"))
    path = tmp_path / "one.toml"
    path.write_text(text, encoding="utf-8")
    plain = load_profile(str(path))
    lines = text.splitlines()
    own = lines.index("#[[collections]]")
    resumed, last = lines.index("[extraction]"), lines.index("#[checkpoints]")
    for number, line in enumerate(lines):
        if not line.startswith("#") or line.startswith(("# ", "#[")):
            continue
        tomllib.loads(line[1:])
        if (
            own < number < resumed
            or number > last
            or "absent by default" in " ".join(lines[max(0, number - 4) : number])
        ):
            continue
        path.write_text("\n".join([*lines[:number], line[1:], *lines[number + 1 :]]), encoding="utf-8")
        changed = load_profile(str(path))
        for spec in changed.collections:
            get_collection(spec.collection).resolve(spec)
        ignored = {"collections": {0: {"options"}}}
        assert changed.model_dump(exclude=ignored) == plain.model_dump(exclude=ignored), line


def test_a_section_that_is_absent_by_default_can_be_set(tmp_path: Path) -> None:
    lines = profile_text(Path("mine.toml")).splitlines()
    last = lines.index("#[checkpoints]")
    keys = [line[1:] for line in lines[last:] if line.startswith("#") and not line.startswith("# ")]
    path = tmp_path / "series.toml"
    path.write_text("\n".join([*lines[:last], *(key for key in keys if not key.startswith("hub"))]), encoding="utf-8")
    checkpoints = load_profile(str(path)).checkpoints
    assert checkpoints is not None
    assert checkpoints.model_dump(exclude={"folder"}) == CheckpointsSpec(folder="any").model_dump(exclude={"folder"})


def test_a_new_profile_can_be_run(tmp_path: Path) -> None:
    study = load_profile(str(write_profile(tmp_path / "mine")))
    check_names(study)
    assert study.name == "mine"
    try:
        preflight(study, Settings(str(tmp_path), tmp_path, "cpu"))
    except InputError as error:
        if "not installed" not in str(error) and "cannot be imported" not in str(error):
            raise
        pytest.skip(f"the demo's packages: {error}")


def test_the_command_writes_once_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "new"]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "mine.toml") in said
    assert "sparse-probing estimate --profile mine.toml" in said
    (tmp_path / "mine.toml").write_text("mine", encoding="utf-8")
    assert main(["profile", "new", "mine.toml"]) == 2
    assert "exists and stays as it is" in capsys.readouterr().err
    assert (tmp_path / "mine.toml").read_text(encoding="utf-8") == "mine"
    assert main(["profile", "new", "no/such/mine.toml"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", collection_names())
def test_a_collection_says_what_it_offers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collections", name]) == 0
    page = capsys.readouterr().out
    collection = get_collection(name)
    assert collection.summary in page
    assert f"Pooling   {collection.default_pooling} by default" in page
    for key in keys(collection.options_model):
        assert f"  {key.name}: {key.kind}; " in page.replace("\n      ", " ")
    assert collection_page(name) in page


def test_pages_name_types_limits_defaults_and_features(capsys: pytest.CaptureFixture[str]) -> None:
    page = collection_page("text_features")
    assert "max_rows: whole number, at least 30; default 10000\n      Labelled positions" in page
    assert 'rare_features: one of "refuse", "leave_out"; default "refuse"' in page
    assert "path: text; absent" in page
    assert "11 by default: contains_digit, all_digits" in page
    assert "those that its options name" in collection_page("labelled_text")
    assert "path: text; required" in collection_page("labelled_text")
    assert main(["collections", "text_feature"]) == 2
    assert "did you mean text_features?" in capsys.readouterr().err
    assert main(["collections"]) == 0
    assert "natural_lang_id" in capsys.readouterr().out


def test_values_are_written_as_toml_reads_them() -> None:
    values = {"a": 'say "x"\n', "b": (1, 2.5), "c": True, "d": ((1, 2), (3, 4)), "e": {}}
    written = "\n".join(f"{key} = {toml(value)}" for key, value in values.items())
    assert tomllib.loads(written) == {"a": 'say "x"\n', "b": [1, 2.5], "c": True, "d": [[1, 2], [3, 4]], "e": {}}
    assert tomllib.loads(f"x = {toml({'k': (1,)})}") == {"x": {"k": [1]}}
