"""What can be known to fail before any work: names, packages, layers, folders. Reads little, writes nothing that stays.

What the words of a profile tell comes first, then folders, then files: nobody waits for an answer that the profile
itself gives. No torch, no Prefect, no database is imported on the way.
"""

from __future__ import annotations

from sparse_probing.config import ModelSpec, StudySpec
from sparse_probing.errors import InputError
from sparse_probing.mistakes import choices
from sparse_probing.settings import Settings, why_unwritable


def check_writable(settings: Settings) -> None:
    """Raise `InputError` unless the data folder can be written to, or, if it is none of this machine's, be reached."""
    reason = why_unwritable(settings.local_dir)
    if reason is not None:
        raise InputError(
            f"Data folder {settings.local_dir} cannot be written to: {reason}.",
            remedy="Pass --data FOLDER, or set SPARSE_PROBING_DATA to a folder of yours.",
        )
    if "://" not in settings.data_uri:
        return
    from sparse_probing.store.filesystem import Location

    try:
        Location.open(settings.data_uri, patient=False).exists()
    except OSError as error:
        raise InputError(
            f"Data folder {settings.shown_data} cannot be reached: {error}.",
            remedy="Check bucket, region, endpoint_override and credentials, or pass --data FOLDER.",
        ) from error


def check_published(settings: Settings) -> None:
    """Raise `InputError` unless there are published results to read."""
    if not settings.snapshot_path.is_file():
        raise InputError(
            f"No published results at {settings.snapshot_path}.",
            remedy="Run `sparse-probing demo` first, or point SPARSE_PROBING_DATA at a folder with results.",
        )


def preflight(study: StudySpec, settings: Settings) -> None:
    """Check a study's models, collections, methods and folders.

    Raises
    ------
    InputError
        At the first thing that cannot work, with its remedy.
    """
    from sparse_probing.datasets.registry import get_collection
    from sparse_probing.models import sources

    check_names(study)
    check_writable(settings)
    _check_solver(study)
    # What is on this machine answers at once; the hub may take a while.
    local = [model for model in study.models if not sources.is_hub_id(model)]
    for model in local:
        sources.preflight(model, models_dir=settings.models_dir)
        _check_shape(study, model)
    for spec in study.collections:
        collection = get_collection(spec.collection)
        collection.preflight(collection.resolve(spec))
    for model in study.models:
        if model not in local:
            sources.preflight(model, models_dir=settings.models_dir)
            _check_shape(study, model)


def check_names(study: StudySpec) -> None:
    """Check what the words of a study alone tell: methods, hooks, collections, options, features, what is given twice.

    Raises
    ------
    InputError
        At the first that does not exist, is given twice, or stands for two things.
    """
    from sparse_probing.datasets.registry import get_collection
    from sparse_probing.models.hook_names import canonical_hook

    _check_methods(study)
    hooks: dict[str, str] = {}
    for name in study.hooks or (study.extraction.hook,):
        canonical = canonical_hook(name)
        if canonical in hooks:
            raise InputError(f"Hooks {hooks[canonical]!r} and {name!r} are the same.", remedy="Leave one of them out.")
        hooks[canonical] = name
    plans: list[object] = []
    for number, spec in enumerate(study.collections):
        plan = get_collection(spec.collection).resolve(spec)
        if plan in plans:
            raise InputError(
                f"Collection {spec.collection!r} is given twice in the same way (collections.{plans.index(plan)} and "
                f"collections.{number}).",
                remedy="Leave one of them out, or let them differ in their text, features, lengths or options.",
            )
        plans.append(plan)
    named: dict[tuple[str, str], ModelSpec] = {}
    for model in study.models:
        key = (model.short_name, model.revision)
        if key in named:
            ways = "" if named[key] == model else ", to be run in two ways; tables could not tell them apart"
            raise InputError(
                f"Model {model.short_name!r} at revision {model.revision!r} is given twice{ways}.",
                remedy="Leave one of them out" + (", or give each its own models.name." if ways else "."),
            )
        named[key] = model


def _check_methods(study: StudySpec) -> None:
    from sparse_probing.probes import METHODS

    probing = study.probing
    asked = {
        "methods": ("classification", probing.methods),
        "best_layer_methods": ("classification", probing.best_layer_methods),
        "regression_methods": ("regression", probing.regression_methods),
        "best_layer_regression_methods": ("regression", probing.best_layer_regression_methods),
        "k_values_by_method": (None, tuple(probing.k_values_by_method)),
    }
    for field, (task, methods) in asked.items():
        known = [name for name, method in METHODS.items() if task in (None, method.task)]
        for method in methods:
            if methods.count(method) > 1:
                raise InputError(
                    f"Method {method!r} is listed twice in probing.{field}.", remedy="Leave one of them out."
                )
            if method not in known:
                kind = "Probe method" if task is None else f"{task.capitalize()} method"
                raise InputError(
                    f"{kind} {method!r} is unknown; {choices(method, known)}.", remedy=f"Edit probing.{field}."
                )


def _check_solver(study: StudySpec) -> None:
    """A study that searches with Gurobi needs it, and a licence that starts it."""
    from sparse_probing.probes import METHODS

    probing = study.probing
    exact = [name for name in (*probing.methods, *probing.best_layer_methods) if METHODS[name].is_optimal]
    if not exact or probing.optimal_solver != "gurobi":
        return
    from sparse_probing.probes.optimal import integer_model

    try:
        integer_model.check_solver()
    except InputError as error:
        raise InputError(
            f'probing.optimal_solver is "gurobi": {error.message}',
            remedy='Mend it, or set probing.optimal_solver = "tree".',
        ) from error


def _check_shape(study: StudySpec, model: ModelSpec) -> None:
    """Layers and neurons against what the model's own description states."""
    from sparse_probing.activations.chosen_neurons import check_neurons
    from sparse_probing.models.peek import peek_n_layers, peek_width

    extraction = study.extractions[0]
    if extraction.neurons is None and not extraction.layers:
        return
    n_layers = peek_n_layers(model)
    if extraction.neurons is not None:
        check_neurons(extraction, model.short_name, n_layers=n_layers, width=peek_width(model, extraction.hook))
    for layer in extraction.layers or ():
        if n_layers is not None and not 0 <= layer < n_layers:
            raise InputError(
                f"Layer {layer} requested; {model.short_name} has {n_layers} (0–{n_layers - 1}).",
                remedy="Edit extraction.layers.",
            )
