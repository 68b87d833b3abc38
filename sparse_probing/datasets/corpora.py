"""The mixed corpus that token-level collections use where the user names no text: prose, code, many languages.

Lists of installed packages and languages only. All packages but `eld` are this project's own dependencies.
"""

from __future__ import annotations

from sparse_probing.datasets.source_code import Project, ProjectFiles
from sparse_probing.datasets.sources import LabelledSentences, LanguageReference, PackageReadmes, Source

README_PACKAGES = (
    "great-expectations",
    "networkx",
    "numpy",
    "pandas",
    "prefect",
    "pydantic",
    "pyarrow",
    "requests",
    "rich",
    "scikit-learn",
    "scipy",
    "sympy",
    "torch",
    "transformers",
)
CODE_PROJECTS = (
    Project("networkx", "python", "networkx", "networkx/algorithms", (".py",)),
    Project("sympy", "python", "sympy", "sympy/core", (".py",)),
    Project("jinja2", "python", "jinja2", "jinja2", (".py",)),
    Project("rich", "python", "rich", "rich", (".py",)),
)
# Scripts of many kinds, so that capitals, digits and non-ASCII all occur in more than one.
LANGUAGES = ("en", "de", "fr", "es", "pl", "tr", "vi", "el", "ru", "uk", "ar", "he", "hi", "ja", "zh", "ko")
SENTENCES_PER_DOCUMENT = 5


def mixed_sources() -> tuple[Source, ...]:
    """Sources of prose, code and multilingual text; labels ``prose``, ``code`` and ``multilingual``."""
    return (
        LanguageReference(label="prose"),
        PackageReadmes(README_PACKAGES, label="prose"),
        ProjectFiles(CODE_PROJECTS, files_per_project=40, per_file_groups=True, label="code"),
        LabelledSentences(tuple((code, "multilingual") for code in LANGUAGES), join=SENTENCES_PER_DOCUMENT),
    )
