"""The user's own files: which of a folder count, and that nothing is skipped in silence."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_probing.config import CollectionSpec
from sparse_probing.datasets.build import build_dataset
from sparse_probing.datasets.local_files import LocalTexts
from sparse_probing.datasets.sources import Document, Skipped
from sparse_probing.errors import DataError, InputError
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import read_manifest

TABLE = "text,label\na text,x\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def labels_and_skipped(source: LocalTexts) -> tuple[list[str], list[str]]:
    source.check()
    found = list(source.readings(0))
    documents = [item.label for item in found if isinstance(item, Document)]
    return documents, [str(item) for item in found if isinstance(item, Skipped)]


def test_rows_that_are_skipped_say_why_and_where(tmp_path: Path) -> None:
    """Rows without text or label, or with another label, were dropped without a word."""
    rows = ["text,label", "a,x", ",x", "b,", "c,z", '"  ",y', ",", "d,y"]
    write(tmp_path, {"texts.csv": "\n".join(rows)})
    assert labels_and_skipped(LocalTexts(str(tmp_path / "texts.csv"), labels={"x": "x", "y": "y"})) == (
        ["x", "y"],
        [
            "1 row with no text (first: texts.csv row 2)",
            "1 row with no label (first: texts.csv row 3)",
            "1 row with a label that was not asked for (first: texts.csv row 4, 'z')",
            "1 row with no text (first: texts.csv row 5)",
            "1 row with no text (first: texts.csv row 6)",
        ],
    )


def test_without_a_label_column_only_rows_without_text_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, {"texts.csv": "text,label\na,\n,x\nb,z\n"})
    source = LocalTexts(str(tmp_path / "texts.csv"), "text", None)
    assert labels_and_skipped(source) == (["text", "text"], ["1 row with no text (first: texts.csv row 2)"])


def test_text_files_that_are_skipped_say_why(tmp_path: Path) -> None:
    write(tmp_path, {"x/a.txt": "a", "x/b.txt": " \n", "z/c.txt": "c", "stray.txt": "d"})
    assert labels_and_skipped(LocalTexts(str(tmp_path), labels={"x": "x"})) == (
        ["x"],
        [
            "1 file with no label (first: stray.txt lies in no folder LABEL)",
            "1 file with no text (first: x/b.txt)",
            "1 file with a label that was not asked for (first: z/c.txt)",
        ],
    )


def test_hidden_files_and_folders_do_not_count_at_any_depth(tmp_path: Path) -> None:
    """Copies in .ipynb_checkpoints were read with their old labels, and a .git folder refused a clone."""
    names = (
        ".ipynb_checkpoints/a-checkpoint.csv",
        "sub/.ipynb_checkpoints/a.csv",
        ".git/config",
        ".hidden.csv",
        "~$a.csv",
    )
    write(tmp_path, {"a.csv": TABLE, **dict.fromkeys(names, "text,label\nold,old\n")})
    assert labels_and_skipped(LocalTexts(str(tmp_path))) == (["x"], [])
    write(tmp_path / "texts", {"x/a.txt": "a", ".git/config": "b", "x/.cache/c.txt": "c", "x/~$a.txt": "d"})
    assert labels_and_skipped(LocalTexts(str(tmp_path / "texts"))) == (["x"], [])
    write(tmp_path / ".mine", {"a.csv": TABLE})
    assert labels_and_skipped(LocalTexts(str(tmp_path / ".mine"))) == (["x"], [])
    write(tmp_path / "none", {".a.csv": TABLE})
    with pytest.raises(InputError, match=r"is empty \(names that begin with \. or ~\$ do not count\)"):
        LocalTexts(str(tmp_path / "none")).check()


def test_suffixes_in_upper_case_are_tables(tmp_path: Path) -> None:
    """A file texts.CSV was read as one text, or left out beside other tables."""
    write(tmp_path, {"a.CSV": TABLE, "b.JsonL": '{"text": "b", "label": "y"}\n'})
    pq.write_table(pa.table({"text": ["c"], "label": ["z"]}), tmp_path / "c.PARQUET")
    assert labels_and_skipped(LocalTexts(str(tmp_path))) == (["x", "y", "z"], [])


def test_files_beside_tables_are_skipped_with_a_word(tmp_path: Path) -> None:
    """README, LICENSE, pictures and marks of finished jobs were left out in silence."""
    files = dict.fromkeys(("LICENSE", "README.md", "part/_SUCCESS"), "words")
    write(tmp_path, {"a.csv": TABLE, "part/b.csv": TABLE, **files})
    labels, skipped = labels_and_skipped(LocalTexts(str(tmp_path)))
    assert labels == ["x", "x"]
    assert skipped == [
        f"1 file with no suffix of a table, beside tables (first: {name})"
        for name in ("LICENSE", "README.md", "part/_SUCCESS")
    ]


def test_files_that_are_neither_tables_nor_in_folders_are_refused(tmp_path: Path) -> None:
    """A folder of .json files ended in "no text of class …; known: " with nothing after it."""
    write(tmp_path, {"data.json": "{}", "more.json": "{}"})
    with pytest.raises(
        InputError, match=r"holds 2 files \(data\.json, …\): none is a table .* rename them \(\.json to"
    ):
        LocalTexts(str(tmp_path)).check()
    LocalTexts(str(tmp_path), label_column=None).check()


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    """A linked folder was left out in silence."""
    write(tmp_path, {"elsewhere/a.txt": "a", "texts/y/b.txt": "b"})
    (tmp_path / "texts" / "x").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "y" / "up").symlink_to(tmp_path / "texts")
    (tmp_path / "elsewhere" / "itself").symlink_to(tmp_path / "elsewhere")
    assert labels_and_skipped(LocalTexts(str(tmp_path / "texts"))) == (["x", "y"], [])
    (tmp_path / "texts" / "y" / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"gone\.txt is a link to a file that is not there"):
        LocalTexts(str(tmp_path / "texts")).check()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_names_that_are_no_utf8_are_one_line(tmp_path: Path) -> None:
    """A file from an old archive ended in a UnicodeEncodeError."""
    write(tmp_path, {"x/é.txt": "a"})
    LocalTexts(str(tmp_path)).check()
    (tmp_path / "x" / os.fsdecode(b"caf\xe9.txt")).write_text("b", encoding="utf-8")
    with pytest.raises(InputError, match=r"x holds a name that is no UTF-8: b'caf\\xe9\.txt'"):
        LocalTexts(str(tmp_path)).check()


def test_a_mark_at_the_start_of_a_text_file_is_no_text(tmp_path: Path) -> None:
    write(tmp_path, {"x/a.txt": "\ufeffwords"})
    assert [document.text for document in LocalTexts(str(tmp_path)).documents(0)] == ["words"]


def test_a_dataset_keeps_the_counts_of_what_was_skipped(
    tmp_path: Path, corpus: dict[str, list[str]], tokenizer: Any
) -> None:
    rows = [{"text": text, "label": code} for code in ("es", "de", "fr") for text in corpus[code]]
    rows += [{"text": "", "label": "es"}, {"text": "a"}, {"text": None, "label": "de"}]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"path": str(path), "classes": ["es", "de"], "sequences_per_class": 12}
    spec = CollectionSpec(collection="labelled_text", context_length=24, options=options)
    folder = build_dataset(spec, root=Location.open(tmp_path / "d"), tokenizer=tokenizer, tokenizer_digest="t")
    manifest = read_manifest(folder)
    assert manifest.facts["skipped"] == [
        {"what": "rows", "reason": "a label that was not asked for", "first": "texts.jsonl row 81, 'fr'", "n": 40},
        {"what": "rows", "reason": "no text", "first": "texts.jsonl row 121", "n": 2},
        {"what": "rows", "reason": "no label", "first": "texts.jsonl row 122", "n": 1},
    ]
    assert manifest.inputs["reader"] == "2"


def test_texts_that_are_all_skipped_say_so(tmp_path: Path, tokenizer: Any) -> None:
    """A file whose text column is empty ended in "found none"."""
    write(tmp_path, {"texts.csv": "text,label\n,x\n,y\n"})
    options = {"path": str(tmp_path / "texts.csv"), "classes": ["x", "y"]}
    spec = CollectionSpec(collection="labelled_text", options=options)
    with pytest.raises(DataError, match=r"found none\. Skipped: 2 rows with no text \(first: texts\.csv row 1\)\."):
        build_dataset(spec, root=Location.open(tmp_path / "d"), tokenizer=tokenizer, tokenizer_digest="t")


def test_a_row_of_20_mb_is_read_and_a_label_of_that_size_is_refused(tmp_path: Path) -> None:
    """A text in the column of labels was a class of its own, whose name filled messages and the manifest."""
    long = "word " * 4_000_000
    write(tmp_path, {"long.csv": f'text,label\na,x\n"{long}",y\n', "odd.csv": f'text,label\na,x\nb,"{long}"\n'})
    documents = list(LocalTexts(str(tmp_path / "long.csv")).documents(0))
    assert [(len(document.text), document.label) for document in documents] == [(1, "x"), (20_000_000, "y")]
    source = LocalTexts(str(tmp_path / "odd.csv"), labels={"x": "x", "y": "y"})
    source.check()
    # Before any work, and for whoever reads without asking before.
    for read in (source.labels_found, lambda: source.readings(0)):
        with pytest.raises(
            InputError, match=r"odd\.csv row 2: column 'label' holds a text of 20,000,000 characters"
        ) as e:
            list(read())
        assert len(str(e.value)) < 1000
    write(tmp_path, {"headless.csv": f"{long},\n"})
    with pytest.raises(InputError, match=r"has columns word .*…, ; ") as e:
        LocalTexts(str(tmp_path / "headless.csv")).check()
    assert len(str(e.value)) < 1000
