"""Whether what a study asks for fits its model: hooks, layers, lengths, ids. Loads no weights and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sparse_probing.config import CollectionSpec, ExtractionSpec
from sparse_probing.models.hooks import canonical_hook, check_layers
from sparse_probing.models.limits import check_length, check_tokens
from sparse_probing.models.loading import without_weights
from sparse_probing.models.resolved import ResolvedModel


def check_fits(
    resolved: ResolvedModel,
    tokenizer: Any,
    collections: Iterable[CollectionSpec] = (),
    extractions: Iterable[ExtractionSpec] = (),
) -> list[str]:
    """Find out, before a dataset is built, whether a model can take it and has the hooks that are asked for.

    Returns
    -------
    A line for each hook that some of the model's layers lack, naming those that have it.

    Raises
    ------
    InputError
        If sequences may be longer than the model's positions, text may become ids without an embedding, or a hook or
        layer is not there.
    """
    for collection in collections:
        check_length(resolved.short_name, resolved.n_positions, collection.context_length)
    check_tokens(resolved.short_name, resolved.n_embeddings, tokenizer)
    model, lines = None, []
    for extraction in extractions:
        model = model or without_weights(resolved.folder)
        hook = canonical_hook(extraction.hook)
        chosen = extraction.neurons_by_layer()
        wanted = tuple(chosen) if chosen is not None else extraction.layers
        there = check_layers(model, hook, wanted)
        if wanted is None and len(there) < resolved.n_layers:
            lines.append(
                f"{resolved.short_name}: {len(there)} of {resolved.n_layers} layers have {hook} "
                f"({', '.join(map(str, there))}); the others are left out."
            )
    return lines
