"""programming_lang_id: which programming language a piece of source code is written in, one against the others.

Split by project: a project's style, names and licence would give its files away on the other side of a split. Without a
`path`, the code comes from installed packages; every language has at least three projects.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, ValidationInfo, field_validator

from sparse_probing.config import MAX_COUNT
from sparse_probing.datasets.document_classes import DocumentClassCollection, DocumentClassOptions, known_classes
from sparse_probing.datasets.source_code import Project, ProjectFiles
from sparse_probing.datasets.sources import Source

CPP = (".h", ".hpp", ".cpp", ".cc", ".cuh")
CYTHON = (".pyx", ".pxd", ".pxi")
PROJECTS = (
    Project("networkx", "python", "networkx", "networkx", (".py",)),
    Project("sympy", "python", "sympy", "sympy/solvers", (".py",)),
    Project("jinja2", "python", "jinja2", "jinja2", (".py",)),
    Project("rich", "python", "rich", "rich", (".py",)),
    Project("requests", "python", "requests", "requests", (".py",)),
    Project("pydantic", "python", "pydantic", "pydantic", (".py",)),
    Project("starlette", "python", "starlette", "starlette", (".py",)),
    Project("alembic", "python", "alembic", "alembic", (".py",)),
    Project("joblib", "python", "joblib", "joblib", (".py",)),
    Project("mistune", "python", "mistune", "mistune", (".py",)),
    Project("pytorch", "cpp", "torch", "torch/include/c10", CPP),
    Project("pybind11", "cpp", "torch", "torch/include/pybind11", CPP),
    Project("fmt", "cpp", "torch", "torch/include/fmt", CPP),
    Project("tensorpipe", "cpp", "torch", "torch/include/tensorpipe", CPP),
    Project("arrow", "cpp", "pyarrow", "pyarrow/include/arrow", CPP),
    Project("greenlet", "cpp", "greenlet", "greenlet", (".cpp", ".hpp")),
    Project("onednn", "cpp", "torch", "torch/include/oneapi/dnnl", (".hpp",)),
    Project("fbgemm", "cpp", "torch", "torch/include/fbgemm", CPP),
    Project("kineto", "cpp", "torch", "torch/include/kineto", CPP),
    Project("d3", "javascript", "XStatic-D3", "xstatic/pkg/d3/data", (".js",)),
    Project("angular", "javascript", "XStatic-Angular", "xstatic/pkg/angular/data", (".js",)),
    Project("rickshaw", "javascript", "XStatic-Rickshaw", "xstatic/pkg/rickshaw/data", (".js",)),
    Project("tablesorter", "javascript", "XStatic-JQuery.TableSorter", "xstatic/pkg/jquery_tablesorter/data", (".js",)),
    Project("smart_table", "javascript", "XStatic-smart-table", "xstatic/pkg/angular_smart_table/data", (".js",)),
    Project("lodash", "javascript", "XStatic-lodash", "xstatic/pkg/lodash/data", (".js",)),
    Project("hogan", "javascript", "XStatic-Hogan", "xstatic/pkg/hogan/data", (".js",)),
    Project("django_debug_toolbar", "javascript", "django-debug-toolbar", "debug_toolbar", (".js",)),
    Project("django_rest_framework", "javascript", "djangorestframework", "rest_framework", (".js",)),
    Project("scikit_learn", "cython", "scikit-learn", "sklearn", CYTHON),
    Project("arrow", "cython", "pyarrow", "pyarrow", CYTHON),
    Project("asyncpg", "cython", "asyncpg", "asyncpg", CYTHON),
    Project("scipy", "cython", "scipy", "scipy", CYTHON),
    Project("sqlalchemy", "cython", "sqlalchemy", "sqlalchemy", CYTHON),
    Project("numpy", "cython", "numpy", "numpy", CYTHON),
    Project("django_rest_framework", "html", "djangorestframework", "rest_framework", (".html",)),
    Project("django_debug_toolbar", "html", "django-debug-toolbar", "debug_toolbar", (".html",)),
    Project("django_allauth", "html", "django-allauth", "allauth", (".html",)),
    Project("django_oauth_toolkit", "html", "django-oauth-toolkit", "oauth2_provider", (".html",)),
    Project("django_two_factor_auth", "html", "django-two-factor-auth", "two_factor", (".html",)),
    Project("django_import_export", "html", "django-import-export", "import_export", (".html",)),
    Project("pelican", "html", "pelican", "pelican", (".html",)),
)
LANGUAGES = tuple(dict.fromkeys(project.language for project in PROJECTS))
# What the reference's own corpus labels, for texts of the user's: label as found to feature.
REFERENCE_LABELS = {
    "C++": "cpp",
    "C": "c",
    "Go": "go",
    "HTML": "html",
    "Java": "java",
    "JavaScript": "javascript",
    "PHP": "php",
    "Python": "python",
    "XML": "xml",
}


class ProgrammingLanguageOptions(DocumentClassOptions):
    """Options of programming_lang_id."""

    languages: tuple[str, ...] = Field(
        default=(),
        description=f"Out of {', '.join(LANGUAGES)}, or with `path` any that the texts have; all of those, or with `path` "
        f"the reference's ({', '.join(REFERENCE_LABELS.values())}), if empty.",
    )
    sequences_per_class: int = Field(
        default=600, ge=3, le=MAX_COUNT, description="Sequences of each language, all splits."
    )
    windows_per_document: int = Field(
        default=20, ge=1, le=MAX_COUNT, description="Pieces taken of a file longer than a context."
    )
    files_per_project: int = Field(
        default=60, ge=1, le=MAX_COUNT, description="Files of a project that are considered."
    )
    skip_tokens: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="Tokens at the start of the text that nothing may use."
    )
    positions_per_sequence: int = Field(
        default=5, ge=1, le=MAX_COUNT, description="Labelled positions with pooling none."
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(value) == 1:
            raise ValueError("one language is named; at least two are told apart")
        # The reference's languages have no text of their own here: `path` says where it is.
        return known_classes(value, LANGUAGES, own_texts=info.data.get("path") is not None)


class ProgrammingLanguage(DocumentClassCollection[ProgrammingLanguageOptions]):
    """The programming language of a piece of code."""

    name = "programming_lang_id"
    summary = "Programming language of source code, one against the rest, split by project"
    options_model = ProgrammingLanguageOptions
    group_unit = "projects"

    def classes(self, options: ProgrammingLanguageOptions) -> Mapping[str, str]:
        """See `DocumentClassCollection.classes`."""
        if options.path is None:
            return {name: name for name in options.languages or LANGUAGES}
        wanted = options.languages or tuple(REFERENCE_LABELS.values())
        found = {label: name for label, name in REFERENCE_LABELS.items() if name in wanted}
        return {**found, **{name: name for name in wanted if name not in found.values()}}

    def own_sources(self, options: ProgrammingLanguageOptions) -> tuple[Source, ...]:
        """See `DocumentClassCollection.own_sources`."""
        wanted = options.languages or LANGUAGES
        projects = tuple(project for project in PROJECTS if project.language in wanted)
        return (ProjectFiles(projects, files_per_project=options.files_per_project),)
