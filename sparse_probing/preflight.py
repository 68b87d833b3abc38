"""What can be known to fail before any work: names, packages, layers, folders. Reads little, writes nothing that stays."""

from __future__ import annotations

import uuid

from sparse_probing.config import StudySpec
from sparse_probing.errors import InputError
from sparse_probing.settings import Settings


def check_writable(settings: Settings) -> None:
    """Raise `InputError` unless the data folder can be written to."""
    folder = settings.local_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tmp-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"Data folder {folder} cannot be written to: {error.strerror}.",
            remedy="Pass --data FOLDER, or set SPARSE_PROBING_DATA to a folder of yours.",
        ) from error


def preflight(study: StudySpec, settings: Settings) -> None:
    """Check a study's models, collections, methods and folders.

    Raises
    ------
    InputError
        At the first thing that cannot work, with its remedy.
    """
    from sparse_probing import probes
    from sparse_probing.datasets import build
    from sparse_probing.models import hooks, loading
    from sparse_probing.models.peek import peek_n_layers, peek_width

    check_writable(settings)
    probing = study.probing
    asked = {
        "methods": ("classification", probing.methods),
        "best_layer_methods": ("classification", probing.best_layer_methods),
        "regression_methods": ("regression", probing.regression_methods),
        "best_layer_regression_methods": ("regression", probing.best_layer_regression_methods),
        "k_values_by_method": (None, tuple(probing.k_values_by_method)),
    }
    for field, (task, methods) in asked.items():
        known = [name for name, method in probes.METHODS.items() if task in (None, method.task)]
        for method in methods:
            if method not in known:
                kind = "Probe method" if task is None else f"{task.capitalize()} method"
                raise InputError(
                    f"{kind} {method!r} is unknown; known: {', '.join(known)}.", remedy=f"Edit probing.{field}."
                )
    extraction = study.extractions[0]
    for one in study.extractions:
        hooks.canonical_hook(one.hook)
    for model in study.models:
        loading.preflight(model, models_dir=settings.models_dir)
        n_layers = peek_n_layers(model)
        if extraction.neurons is not None:
            from sparse_probing.activations.columns import check_neurons

            width = peek_width(model, extraction.hook)
            check_neurons(extraction, model.short_name, n_layers=n_layers, width=width)
        for layer in extraction.layers or ():
            if n_layers is not None and not 0 <= layer < n_layers:
                raise InputError(
                    f"Layer {layer} requested; {model.short_name} has {n_layers} (0–{n_layers - 1}).",
                    remedy="Edit extraction.layers.",
                )
    for collection in study.collections:
        build.preflight(collection)
