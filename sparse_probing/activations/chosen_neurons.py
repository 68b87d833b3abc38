"""Whether the neurons that a spec chooses exist, as far as a model's layers and widths are known. Needs no torch."""

from __future__ import annotations

from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import InputError


def check_neurons(
    spec: ExtractionSpec, model: str, *, n_layers: int | None = None, width: int | None = None, layer: int | None = None
) -> None:
    """Compare a spec's chosen neurons with what is known of a model: its layers, the width of one of them or of all.

    Raises
    ------
    InputError
        At the first that is not there.
    """
    for its_layer, ids in (spec.neurons_by_layer() or {}).items():
        if n_layers is not None and its_layer >= n_layers:
            raise InputError(
                f"Neurons of layer {its_layer} requested; {model} has {n_layers} layers (0–{n_layers - 1}).",
                remedy="Edit extraction.neurons.",
            )
        if width is not None and layer in (None, its_layer) and ids[-1] >= width:
            raise InputError(
                f"Neuron {ids[-1]} of layer {its_layer} requested; {model} has {width} (0–{width - 1}) at {spec.hook}.",
                remedy="Edit extraction.neurons.",
            )
