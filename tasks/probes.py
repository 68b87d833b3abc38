"""Tasks that probe: one layer at a time, then one run as a whole. What they do is in `sparse_probing.runs`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from prefect import task

from sparse_probing import schemas
from sparse_probing.config import CollectionSpec, ModelSpec, ProbingSpec
from sparse_probing.runs import planned
from sparse_probing.runs.planned import PlannedRun as PlannedRun
from sparse_probing.store import results
from sparse_probing.store.locks import owned
from sparse_probing.store.manifests import read_manifest
from tasks.assets import tell_made
from tasks.locations import data_root, located, relative
from tasks.logs import as_ranges, log, logged, stored_bytes
from tasks.policies import POLICY
from tasks.progress import advance, say_and_log, step, step_of
from tasks.threads import use_one_blas_thread


@task(name="plan-run", **POLICY)
def plan_run(
    study: str, model: ModelSpec, collection: CollectionSpec, probing: ProbingSpec, dataset: str, activations: str
) -> PlannedRun:
    """Name the run after what decides its results, and say which layers it has. What is damaged of it is set aside."""
    run = planned.plan_run(
        data_root(),
        study=study,
        model=model,
        collection=collection,
        probing=probing,
        dataset=dataset,
        activations=activations,
        say=say_and_log,
    )
    log("Run was there" if run.finished else "Run", **_names(run), layers=as_ranges(run.layers))
    return run


def _names(run: PlannedRun) -> dict[str, str]:
    """What a line of a log says of a run."""
    return {
        "model": run.model.short_name,
        "revision": run.revision,
        "collection": run.collection.collection,
        "hook": run.hook,
        "run": run.run_id,
    }


def _step_of(run: PlannedRun, share: tuple[int, int] | None) -> str:
    return step_of(run.model.short_name, run.model.revision, share)


def _short_kind(kind: str) -> str:
    """A kind of results as a log calls it: scores, fits, features."""
    return kind.removeprefix("probe_").removeprefix("neuron_")


@contextmanager
def _logged_part(run: PlannedRun, work: str, layer: int, part: str) -> Iterator[dict[str, object]]:
    """As `logged`, with what the part of a run holds; nothing is logged of a part that was there."""
    root = data_root()
    if results.is_part_done(root, run.run_id, part):
        yield {}
        return
    use_one_blas_thread()
    with logged(work, **_names(run), layer=layer) as numbers:
        yield numbers
        facts = read_manifest(located(run.activations)).facts
        numbers |= {
            "rows": facts["n_rows"],
            "neurons": dict(zip(run.layers, facts["n_neurons_by_layer"], strict=True))[layer],
        }
        manifest = read_manifest(results.part_folder(root, run.run_id, part))
        numbers |= {
            _short_kind(kind): manifest.files[f"{kind}.parquet"].n_rows
            for kind in ("neuron_scores", "probe_fits")
            if f"{kind}.parquet" in manifest.files
        }
        numbers["bytes"] = stored_bytes(manifest)


def import_for_stages() -> None:
    """`runs.imports.import_for_stages`, before layers are probed side by side."""
    from sparse_probing.runs import imports

    imports.import_for_stages()


def own_run(run: PlannedRun) -> AbstractContextManager[None]:
    """Keep every other process from probing a run; waits for one that does."""
    return owned(data_root(), results.running_folder(data_root(), run.run_id), say=say_and_log)


def is_finished(run: PlannedRun) -> bool:
    """Whether a run is finished by now."""
    return results.is_finished(data_root(), run.run_id)


@task(name="probe-layer", task_run_name="probe {run.title} layer {layer}", **POLICY)
def probe_layer(run: PlannedRun, layer: int, total: int | None = None, share: tuple[int, int] | None = None) -> str:
    """Score every neuron of a layer on every feature, and fit the study's probes; returns the part's name.

    Parameters
    ----------
    total:
        Layers that this flow's run probes; all of the run's if absent.
    share:
        (i, n) where it does the i-th of n parts.
    """
    from sparse_probing.runs import stages

    with _logged_part(run, "Layer probed", layer, results.layer_part(layer)):
        part = stages.probe_layer(data_root(), run, layer)
    advance(f"Probe {run.text}", total or len(run.layers), of=_step_of(run, share))
    return part


@task(name="choose-layers", task_run_name="choose layers {run.title}", **POLICY)
def choose_layers(run: PlannedRun) -> dict[int, list[str]]:
    """The layers that hold some feature's best neuron by validation, and the features of each."""
    from sparse_probing.runs import stages

    chosen = stages.choose_layers(data_root(), run)
    n_features = sum(map(len, chosen.values()))
    log("Layers chosen", **_names(run), layers=as_ranges(chosen), features=n_features)
    return chosen


@task(name="probe-best-layer", task_run_name="probe {run.title} best layer {layer}", **POLICY)
def probe_best_layer(
    run: PlannedRun, layer: int, features: list[str], total: int, share: tuple[int, int] | None = None
) -> str:
    """Fit the costlier methods for the features that do best on this layer; returns the part's name. See `probe_layer`."""
    from sparse_probing.runs import stages

    with _logged_part(run, "Best layer compared", layer, results.best_part(layer)) as numbers:
        numbers["features"] = len(features)
        part = stages.probe_best_layer(data_root(), run, layer, features)
    advance(f"Compare {run.text}", total, of=_step_of(run, share))
    return part


@task(name="finish-run", task_run_name="finish {run.title}", **POLICY)
def finish_run(run: PlannedRun, best_parts: list[str]) -> str:
    """Put the layers together, correct for the number of tests, and write the run's fragments; returns its id."""
    from sparse_probing.runs import stages

    root = data_root()
    if is_finished(run):
        return run.run_id
    with step(f"Finish {run.text}"), logged("Run is finished", **_names(run)) as numbers:
        stages.finish_run(root, run, best_parts)
        written = {kind: read_manifest(results.run_folder(root, kind, run.run_id)) for kind in schemas.RESULT_KINDS}
        numbers |= {
            _short_kind(kind): sum(entry.n_rows for entry in written[kind].files.values())
            for kind in ("neuron_scores", "probe_fits", "features")
        }
        numbers["bytes"] = sum(map(stored_bytes, written.values()))
    title = f"Ranking of {run.text} in {run.model.short_name}"
    reference = relative(results.run_folder(root, "runs", run.run_id))
    tell_made(reference, title, of=[run.activations, run.dataset], facts={"bytes": numbers["bytes"]})
    return run.run_id
