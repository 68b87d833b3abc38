"""The user's own corpora: tables with named columns, or folders of text files.

Which files of a folder count, which column holds text, label and group, and what is skipped. How a column of a table
becomes text is the business of `tables`.

Files and folders below the named folder whose names begin with ``.`` or ``~$`` do not count, at any depth: they are the
copies, locks and archives of other programs. If a table is among the rest, the tables are the texts, and other files
beside them are skipped and counted; without a table every file is a text. Links are followed, but not in a circle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparse_probing.datasets.sources import (
    NO_LABEL,
    NO_TABLE,
    NO_TEXT,
    OTHER_LABEL,
    Document,
    Skipped,
    Source,
    file_digest,
)
from sparse_probing.datasets.tables import FORMATS, column_names, read_columns, table_format
from sparse_probing.errors import InputError
from sparse_probing.mistakes import did_you_mean, did_you_mean_path, listed
from sparse_probing.settings import user_path

# Raised when the same files would give other documents: datasets made from them are then built again.
READER_VERSION = "2"
NOT_COUNTED = (".", "~$")
# Labels stand in messages, manifests and tables; a column of whole texts is none of labels.
MAX_LABEL_CHARS = 1000


@dataclass(frozen=True)
class LocalTexts(Source):
    """Labelled texts in files of the user's.

    `path` is a table file, a folder of table files, or a folder of text files laid out as ``LABEL/GROUP/…/file`` or
    ``LABEL/file`` (then each file is its own group). Rows and files without text, without a label, or with a label that
    `labels` lacks are skipped; `readings` has them. Without a label column only those without text are.

    Parameters
    ----------
    path:
        File or folder.
    text_column, label_column, group_column:
        Columns of a table. Without a group column each row is its own group; without a label column (None) every
        document has the label `default_label`.
    labels:
        Label as found to label as used; empty for no change. Documents with other labels are left out.
    """

    path: str
    text_column: str = "text"
    label_column: str | None = "label"
    group_column: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    default_label: str = "text"

    def check(self) -> None:
        """See `Source.check`: the files are there and have the columns; no file is read further than to see them."""
        files = self._files()[0]
        if self.label_column is not None and not any(table_format(file) or self._folders(file) for file in files):
            raise InputError(
                f"Folder {user_path(self.path)} holds {len(files)} files ({self._relative(files[0])}, …): none is a table "
                f"({', '.join(FORMATS)}), and none lies in a folder LABEL.",
                remedy="Convert or rename them (.json to .jsonl, if each line is an object), or move each into the folder "
                "of its label.",
            )
        for file in files:
            if table_format(file):
                self._check_columns(file, column_names(file, self._columns()))

    def fingerprints(self) -> dict[str, str]:
        """See `Source.fingerprints`: names and contents, but not where the files lie."""
        together = hashlib.sha256()
        for file in self._files()[0]:
            together.update(f"{self._relative(file)}\0{file_digest(file)}\n".encode())
        return {f"files:{Path(self.path).name}": together.hexdigest(), "reader": READER_VERSION}

    def documents(self, seed: int) -> Iterator[Document]:
        """See `Source.documents`."""
        return (found for found in self.readings(seed) if isinstance(found, Document))

    def readings(self, seed: int) -> Iterator[Document | Skipped]:
        """See `Source.readings`."""
        files, others = self._files()
        yield from (Skipped("files", NO_TABLE, self._relative(file)) for file in others)
        for file in files:
            yield from self._rows(file) if table_format(file) else [self._text(file)]

    def labels_found(self) -> Iterator[str]:
        """Labels as the texts have them, each once, as soon as it is found; of a table only its column is read."""
        seen: set[str] = set()
        for file in self._files()[0]:
            if not table_format(file):
                labels: Iterable[str | None] = self._folders(file)[:1]
            elif self.label_column is not None:
                rows = enumerate(read_columns(file, [self.label_column]), 1)
                labels = (self._checked(label, file, row) for row, (label,) in rows)
            else:
                labels = ()
            for label in labels:
                if label is not None and label not in seen:
                    seen.add(label)
                    yield label

    def _files(self) -> tuple[list[Path], list[Path]]:
        """The files that are read, and those that are skipped because they lie beside tables."""
        root = user_path(self.path)
        if root.is_file():
            if not table_format(root):
                raise InputError(
                    f"{root} ends in {root.suffix or 'nothing'}; a table of texts ends in {', '.join(FORMATS)} "
                    "(all but .parquet may be packed: .csv.gz).",
                    remedy="Convert it, rename it (.json to .jsonl, if each line is an object), or name a folder of text "
                    "files laid out as LABEL/file.",
                )
            return [root], []
        if not root.is_dir():
            raise InputError(
                f"Text {self.path!r} is not there (looked for {root.absolute()}){did_you_mean_path(root)}",
                remedy="Put the file or folder there, or set options.path of the collection to where it is.",
            )
        try:
            files = sorted(_files_below(root, frozenset()))
        except OSError as error:
            raise InputError(
                f"Folder {root} cannot be read through: {error.strerror} ({error.filename}).",
                remedy="Check its permissions, or set options.path to a folder of texts alone.",
            ) from error
        if not files:
            raise InputError(
                f"Folder {root} is empty (names that begin with {' or '.join(NOT_COUNTED)} do not count).",
                remedy="Put table files or folders LABEL/file into it.",
            )
        tables = [path for path in files if table_format(path)]
        if not tables:
            return files, []
        others = [path for path in files if not table_format(path)]
        self._check_not_mixed(root, tables, others)
        return tables, others

    def _check_not_mixed(self, root: Path, tables: list[Path], others: list[Path]) -> None:
        """Tables are read and other files skipped, unless those are laid out as labelled texts, too.

        Notes that programs leave beside their tables, such as ``_SUCCESS``, are no texts.
        """
        names = [path.relative_to(root) for path in others]
        texts = [name for name in names if len(name.parts) > 1 and not name.name.startswith("_")]
        if texts:
            raise InputError(
                f"Folder {root} holds {len(tables)} tables ({tables[0].relative_to(root)}, …) and {len(texts)} other files "
                f"in folders ({texts[0]}, …); either could be the texts.",
                remedy="Name the table or a folder of tables alone in options.path, or move the tables away.",
            )

    def _relative(self, file: Path) -> str:
        root = user_path(self.path)
        return file.name if root.is_file() else file.relative_to(root).as_posix()

    def _folders(self, file: Path) -> tuple[str, ...]:
        """The folders between the named one and a file."""
        return Path(self._relative(file)).parts[:-1]

    def _check_columns(self, file: Path, found: list[str]) -> None:
        for option in ("text_column", "label_column", "group_column"):
            column = getattr(self, option)
            if column is not None and found.count(column) > 1:
                raise InputError(
                    f"{file} has {found.count(column)} columns {column!r}; {option} is that name.",
                    remedy="Rename all but one of them.",
                )
            if column is not None and column not in found:
                raise InputError(
                    f"{file} has columns {listed(found)}; {option} is {column!r}{did_you_mean(column, found)}",
                    remedy=f"Set options.{option} to one of them.",
                )

    def _columns(self) -> list[str]:
        wanted = (self.text_column, self.label_column, self.group_column)
        return list(dict.fromkeys(name for name in wanted if name is not None))

    def _checked(self, label: str | None, file: Path, row: int) -> str | None:
        """A label as it stands in a row, unless it is so long that it can be none."""
        if label is not None and len(label) > MAX_LABEL_CHARS:
            raise InputError(
                f"{file} row {row}: column {self.label_column!r} holds a text of {len(label):,} characters; a label has at "
                f"most {MAX_LABEL_CHARS:,}.",
                remedy="Set options.label_column to the column of the labels, or mend the row.",
            )
        return label

    def _label(self, found: str) -> str | None:
        return self.labels.get(found) if self.labels else found

    def _rows(self, file: Path) -> Iterator[Document | Skipped]:
        columns = self._columns()
        name = self._relative(file)
        for row, values in enumerate(read_columns(file, columns), 1):
            found = dict(zip(columns, values, strict=True))
            text = found[self.text_column]
            raw = None if self.label_column is None else self._checked(found[self.label_column], file, row)
            label = self.default_label if self.label_column is None else raw and self._label(raw)
            if raw and label is None:
                yield Skipped("rows", OTHER_LABEL, f"{name} row {row}, {raw!r}")
            elif text is None or not text.strip():
                yield Skipped("rows", NO_TEXT, f"{name} row {row}")
            elif label is None:
                yield Skipped("rows", NO_LABEL, f"{name} row {row}")
            elif self.group_column is None:
                yield Document(text, f"{name}:{row}", file.name, label)
            else:
                group = found[self.group_column]
                if group is None:
                    raise InputError(
                        f"{file} row {row}: column {self.group_column!r} is empty; a group is needed to keep texts together.",
                        remedy="Fill the column, or leave options.group_column out so that each row is its own group.",
                    )
                yield Document(text, group, file.name, label)

    def _text(self, file: Path) -> Document | Skipped:
        name, folders = self._relative(file), self._folders(file)
        label: str | None = self.default_label
        if self.label_column is not None:
            if not folders:
                return Skipped("files", NO_LABEL, f"{name} lies in no folder LABEL")
            label = self._label(folders[0])
        if label is None:
            return Skipped("files", OTHER_LABEL, name)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError) as error:
            raise InputError(f"Cannot read {file} as UTF-8 text: {error}.", remedy="Convert or remove it.") from error
        if not text.strip():
            return Skipped("files", NO_TEXT, name)
        return Document(text, "/".join(Path(name).parts[:2]), file.name, label)


def _files_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """The files of a folder that count; `above` are the folders that it lies in, by whatever links."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith(NOT_COUNTED):
            continue
        # Bytes of a name that are no UTF-8 appear as these characters.
        if any("\udc80" <= char <= "\udcff" for char in path.name):
            raise InputError(
                f"{folder} holds a name that is no UTF-8: {os.fsencode(path.name)!r}.",
                remedy="Rename the file or folder.",
            )
        if path.is_dir():
            yield from _files_below(path, above | {real})
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise InputError(
                f"{path} is a link to a file that is not there.", remedy="Fetch the file, or remove the link."
            )
