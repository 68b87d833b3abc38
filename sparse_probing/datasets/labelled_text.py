"""labelled_text: any classes of the user's own texts, one against the rest.

The way to bring a corpus: a table with a text and a label column, or a folder LABEL/GROUP/file. The source of a
document, its genre, its truth: whatever the labels say.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, field_validator

from sparse_probing.datasets.document_classes import DocumentClassCollection, DocumentClassOptions, known_classes
from sparse_probing.datasets.sources import Source


class LabelledTextOptions(DocumentClassOptions):
    """Options of labelled_text."""

    path: str = Field(min_length=1, exclude=True, description="Table file, folder of them, or folder LABEL/GROUP/file.")
    classes: tuple[str, ...] = Field(min_length=2, description="Labels to tell apart, as the texts have them.")

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_classes(value, value, own_texts=True)


class LabelledText(DocumentClassCollection[LabelledTextOptions]):
    """Classes that the user's labels give."""

    name = "labelled_text"
    summary = "Classes of texts of your own, one against the rest (options path and classes)"
    options_model = LabelledTextOptions
    classes_option = "classes"

    def classes(self, options: LabelledTextOptions) -> Mapping[str, str]:
        """See `DocumentClassCollection.classes`."""
        return {label: label for label in options.classes}

    def own_sources(self, options: LabelledTextOptions) -> tuple[Source, ...]:
        """See `DocumentClassCollection.own_sources`: there are none, `path` is required."""
        return ()
