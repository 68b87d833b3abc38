"""The user's own corpora: Parquet, JSON lines, CSV or TSV with named columns, or folders of text files.

Reading only: which columns hold text, label and group is said by the options of a collection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_probing.datasets.sources import Document, Source, file_digest
from sparse_probing.errors import InputError
from sparse_probing.mistakes import did_you_mean, did_you_mean_path
from sparse_probing.settings import user_path

if TYPE_CHECKING:
    import pyarrow.csv as pacsv

TABLE_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")
READ_ROWS = 4096


@dataclass(frozen=True)
class LocalTexts(Source):
    """Labelled texts in files of the user's.

    `path` is a table file, a folder of table files, or a folder of text files laid out as ``LABEL/GROUP/…/file`` or
    ``LABEL/file`` (then each file is its own group).

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
        """See `Source.check`: the files are there and have the columns; no file is read through."""
        for file in self._files():
            if file.suffix in TABLE_SUFFIXES:
                self._check_columns(file, _column_names(file))

    def fingerprints(self) -> dict[str, str]:
        """See `Source.fingerprints`: names and contents, but not where the files lie."""
        together = hashlib.sha256()
        for file in self._files():
            together.update(f"{self._relative(file)}\0{file_digest(file)}\n".encode())
        return {f"files:{Path(self.path).name}": together.hexdigest()}

    def documents(self, seed: int) -> Iterator[Document]:
        """See `Source.documents`."""
        for file in self._files():
            if file.suffix in TABLE_SUFFIXES:
                yield from self._table_documents(file)
            else:
                yield from self._text_document(file)

    def labels_found(self) -> Iterator[str]:
        """Labels as the texts have them, each once, as soon as it is found; of a table only its column is read."""
        seen: set[str] = set()
        for file in self._files():
            if file.suffix not in TABLE_SUFFIXES:
                parts = Path(self._relative(file)).parts
                found = {parts[0]} if len(parts) > 1 else set()
                yield from sorted(found - seen)
                seen |= found
            elif self.label_column is not None:
                for columns in _column_batches(file, [self.label_column]):
                    found = {str(label) for label in columns[self.label_column] if label is not None}
                    yield from sorted(found - seen)
                    seen |= found

    def _files(self) -> list[Path]:
        root = user_path(self.path)
        if root.is_file():
            if root.suffix not in TABLE_SUFFIXES:
                raise InputError(
                    f"{root} ends in {root.suffix or 'nothing'}; a table of texts ends in {', '.join(TABLE_SUFFIXES)}.",
                    remedy="Convert it, or name a folder of text files laid out as LABEL/file.",
                )
            return [root]
        if not root.is_dir():
            raise InputError(
                f"Text {self.path!r} is not there (looked for {root.absolute()}){did_you_mean_path(root)}",
                remedy="Put the file or folder there, or set options.path of the collection to where it is.",
            )
        try:
            files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
        except OSError as error:
            raise InputError(
                f"Folder {root} cannot be read through: {error.strerror} ({error.filename}).",
                remedy="Check its permissions, or set options.path to a folder of texts alone.",
            ) from error
        tables = [path for path in files if path.suffix in TABLE_SUFFIXES]
        if not files:
            raise InputError(f"Folder {root} is empty.", remedy="Put table files or folders LABEL/file into it.")
        if tables:
            self._check_not_mixed(root, tables, files)
        return tables or files

    def _check_not_mixed(self, root: Path, tables: list[Path], files: list[Path]) -> None:
        """Tables are read and other files are left alone, unless those are laid out as labelled texts, too."""
        others = [path.relative_to(root) for path in files if path not in set(tables)]
        texts = [path for path in others if len(path.parts) > 1 and not any(part[0] == "." for part in path.parts)]
        if texts:
            raise InputError(
                f"Folder {root} holds {len(tables)} tables ({tables[0].relative_to(root)}, …) and {len(texts)} other files "
                f"in folders ({texts[0]}, …); either could be the texts.",
                remedy="Name the table or a folder of tables alone in options.path, or move the tables away.",
            )

    def _relative(self, file: Path) -> str:
        root = user_path(self.path)
        return file.name if root.is_file() else file.relative_to(root).as_posix()

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
                    f"{file} has columns {', '.join(found)}; {option} is {column!r}{did_you_mean(column, found)}",
                    remedy=f"Set options.{option} to one of them.",
                )

    def _label(self, found: str) -> str | None:
        return self.labels.get(found) if self.labels else found

    def _table_documents(self, file: Path) -> Iterator[Document]:
        wanted = [name for name in (self.text_column, self.label_column, self.group_column) if name is not None]
        row = 0
        for columns in _column_batches(file, list(dict.fromkeys(wanted))):
            texts = columns[self.text_column]
            found = columns[self.label_column] if self.label_column else [self.default_label] * len(texts)
            groups = columns[self.group_column] if self.group_column else [None] * len(texts)
            for text, raw_label, group in zip(texts, found, groups, strict=True):
                row += 1
                label = self._label(str(raw_label)) if self.label_column else self.default_label
                if label is None or raw_label is None or not isinstance(text, str) or not text.strip():
                    continue
                if self.group_column and group is None:
                    raise InputError(
                        f"{file} row {row}: column {self.group_column!r} is empty; a group is needed to keep texts together.",
                        remedy="Fill the column, or leave options.group_column out so that each row is its own group.",
                    )
                name = f"{self._relative(file)}:{row}" if group is None else str(group)
                yield Document(text, name, file.name, label)

    def _text_document(self, file: Path) -> Iterator[Document]:
        parts = Path(self._relative(file)).parts
        label = (self._label(parts[0]) if len(parts) > 1 else None) if self.label_column else self.default_label
        if label is None:
            return
        group = "/".join(parts[:2]) if len(parts) > 2 else "/".join(parts)
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise InputError(f"Cannot read {file} as UTF-8 text: {error}.", remedy="Convert or remove it.") from error
        if text.strip():
            yield Document(text, group, file.name, label)


def _column_names(file: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.csv as pacsv
    import pyarrow.json as pajson
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".parquet":
            return list(pq.read_schema(file).names)
        if file.suffix == ".jsonl":
            with file.open("rb") as stream:
                first = stream.readline()
            return list(pajson.read_json(pa.BufferReader(first)).schema.names)
        with pacsv.open_csv(file, parse_options=_delimiter(file)) as reader:
            return list(reader.schema.names)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error


def _column_batches(file: Path, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    import pyarrow as pa
    import pyarrow.csv as pacsv
    import pyarrow.json as pajson
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".parquet":
            for batch in pq.ParquetFile(file).iter_batches(READ_ROWS, columns=columns):
                yield batch.to_pydict()
        elif file.suffix == ".jsonl":
            with pajson.open_json(file) as reader:
                for batch in reader:
                    yield batch.select(columns).to_pydict()
        else:
            text = pacsv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True
            )
            parse = _delimiter(file)
            with pacsv.open_csv(file, parse_options=parse, convert_options=text) as reader:
                for batch in reader:
                    yield batch.to_pydict()
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, KeyError) as error:
        raise _unreadable(file, error) from error


def _delimiter(file: Path) -> pacsv.ParseOptions:
    import pyarrow.csv as pacsv

    return pacsv.ParseOptions(delimiter="\t" if file.suffix == ".tsv" else ",", newlines_in_values=True)


def _unreadable(file: Path, error: Exception) -> InputError:
    kind = {".parquet": "Parquet", ".jsonl": "JSON lines", ".csv": "CSV", ".tsv": "TSV"}[file.suffix]
    detail = str(error).splitlines()[0]
    return InputError(f"{file} is not readable as {kind}: {detail}", remedy="Mend or convert the file.")
