"""Neuron lists as CSV files in the layout of those published with arXiv 2305.01610, a folder a model.

Which neurons are listed is decided by the views; nothing is computed here.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sparse_probing.errors import InputError
from sparse_probing.reports.files import replace_text
from sparse_probing.warehouse import connect, reads

USUAL_HOOK = "mlp.hook_post"
# Published name of each column of view `neuron_lists`, in the published order.
COLUMNS = {
    "model": "model",
    "dataset": "dataset",
    "feature": "feature",
    "layer": "layer",
    "neuron": "neuron",
    "test_mcc": "test_mcc",
    "test_f1": "test_f1_score",
    "test_precision": "test_precision",
    "test_recall": "test_recall",
    "coef": "coef",
}
# Of a model, a revision or a hook in the name of a file or folder.
_MOST_BYTES = 120


def write_lists(snapshot: Path, folder: Path) -> dict[Path, int]:
    """Write ``<model>@<revision>/all_neurons_of_interest.csv`` and ``top_mono_neurons.csv`` of every model.

    Neurons at another hook than the usual one are in files of their own, whose names end in the hook.

    Returns
    -------
    dict
        Number of neurons in each file written.

    Raises
    ------
    InputError
        If there are no published results, they hold no scored neuron, or the folder cannot be written to.
    """
    with connect(snapshot) as connection:
        table = reads.neuron_lists(connection)
    if table.empty:
        raise InputError(
            f"{snapshot} holds no scored neuron.", remedy="Run a study of a collection whose features are classes."
        )
    written: dict[Path, int] = {}
    for (model, revision, hook, name), rows in table.groupby(["model", "revision", "hook", "list"], sort=True):
        stem = name if hook == USUAL_HOOK else f"{name}.{_file_name(hook)}"
        path = folder / f"{_file_name(model)}@{_file_name(revision)}" / f"{stem}.csv"
        text = rows[list(COLUMNS)].rename(columns=COLUMNS).to_csv(index=False, lineterminator="\n")
        try:
            replace_text(path, text)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written: {error.strerror}.", remedy="Name a folder of yours."
            ) from error
        written[path] = len(rows)
    return written


def _file_name(text: str) -> str:
    """A text as part of a file's name; a long one ends in its digest, since file systems allow 255 bytes."""
    name = re.sub(r"[^\w.+-]+", "-", text)
    if len(name.encode()) <= _MOST_BYTES:
        return name
    return (
        f"{name.encode()[: _MOST_BYTES - 13].decode(errors='ignore')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    )
