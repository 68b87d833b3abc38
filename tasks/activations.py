"""Tasks that extract activations: the one step that needs the device."""

from __future__ import annotations

from prefect import task

from sparse_probing.config import ExtractionSpec, ModelSpec
from sparse_probing.settings import load_settings
from tasks.policies import POLICY, one_at_a_time
from tasks.progress import reporter
from tasks.references import data_root, located, relative


@task(name="extract-activations", task_run_name="extract {dataset}", **POLICY)
def extract_activations(model: ModelSpec, dataset: str, extraction: ExtractionSpec) -> str:
    """Every wanted layer of every labelled row, in one pass; returns the activations' reference."""
    from sparse_probing.activations import extraction as engine
    from sparse_probing.models import loading

    settings = load_settings()
    resolved = loading.resolve_model(model, models_dir=settings.models_dir)
    collection = dataset.rsplit("/", 1)[-1].rsplit("-", 1)[0]
    arguments = {
        "root": data_root(),
        "device": settings.device,
        "progress": reporter(f"Extract {collection}"),
    }
    finished = engine.find_finished(located(dataset), resolved, extraction, root=data_root())
    if finished is not None:
        return relative(finished)
    with one_at_a_time():
        folder = engine.extract_dataset(located(dataset), resolved, extraction, **arguments)
    return relative(folder)
