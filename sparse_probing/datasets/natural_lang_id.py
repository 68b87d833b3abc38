"""natural_lang_id: which natural language a text is written in, one language against the others.

The reference labels Europarl documents. Here sentences of the `eld` package stand in, or any corpus named by `path`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, ValidationInfo, field_validator

from sparse_probing.config import MAX_COUNT
from sparse_probing.datasets.document_classes import DocumentClassCollection, DocumentClassOptions, known_classes
from sparse_probing.datasets.sources import LabelledSentences, Source

# The languages of the European Parliament that have labelled sentences at hand, by ISO 639-1 code.
LANGUAGES = {
    "bg": "bulgarian",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "fi": "finnish",
    "fr": "french",
    "hr": "croatian",
    "hu": "hungarian",
    "it": "italian",
    "lt": "lithuanian",
    "lv": "latvian",
    "nl": "dutch",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "sk": "slovak",
    "sl": "slovenian",
    "sv": "swedish",
}
REFERENCE_LANGUAGES = ("es", "en", "fr", "nl", "it", "el", "de", "pt", "sv")


class NaturalLanguageOptions(DocumentClassOptions):
    """Options of natural_lang_id."""

    languages: tuple[str, ...] = Field(
        default=REFERENCE_LANGUAGES,
        min_length=2,
        description=f"ISO 639-1 codes: {', '.join(LANGUAGES)}; with `path` any labels that the texts have.",
    )
    sequences_per_class: int = Field(
        default=1000, ge=3, le=MAX_COUNT, description="Sequences of each language, all splits."
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return known_classes(value, LANGUAGES, own_texts=info.data.get("path") is not None)


class NaturalLanguage(DocumentClassCollection[NaturalLanguageOptions]):
    """The language of a sentence."""

    name = "natural_lang_id"
    summary = "Natural language of a sentence, one against the rest"
    options_model = NaturalLanguageOptions
    group_unit = "sentences or documents"

    def classes(self, options: NaturalLanguageOptions) -> Mapping[str, str]:
        """See `DocumentClassCollection.classes`."""
        return {code: LANGUAGES.get(code, code) for code in options.languages}

    def own_sources(self, options: NaturalLanguageOptions) -> tuple[Source, ...]:
        """See `DocumentClassCollection.own_sources`."""
        return (LabelledSentences(tuple(self.classes(options).items())),)
