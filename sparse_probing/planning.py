"""A study spec as the graph of its artifacts: what each is called, what it is made from, and whether it is there.

Reads manifests and the published database; makes nothing, downloads nothing. Neither Prefect nor torch is imported: the
command line, the flows and whatever schedules studies ask here, and get an answer in a second or two.

Long because the names of artifacts, their states and the study made of them are one answer, looked up together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from sparse_probing import schemas, showing
from sparse_probing.activations.naming import activations_digest, activations_folder
from sparse_probing.config import CollectionSpec, ModelSpec, ProbingSpec, StudySpec, dataset_name
from sparse_probing.datasets.build import dataset_digest
from sparse_probing.errors import InputError
from sparse_probing.mistakes import choices
from sparse_probing.models.hook_names import canonical_hook
from sparse_probing.models.resolved import ResolvedModel, find_resolved
from sparse_probing.runs.planned import run_digest
from sparse_probing.settings import Settings, load_settings
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FREED_NAME, MANIFEST_NAME, read_manifest
from sparse_probing.store.soundness import find_damage

if TYPE_CHECKING:
    from sparse_probing.warehouse.published import PublishedRuns

Kind = Literal["dataset", "activations", "run", "database"]
State = Literal["finished", "partial", "missing", "freed"]
COLUMNS = ("kind", "model", "revision", "collection", "hook", "state", "detail", "digest", "path")
# Artifacts looked at side by side: an object store answers in some ten milliseconds.
_THREADS = 8


@dataclass(frozen=True)
class PlannedArtifact:
    """One artifact of a study.

    Attributes
    ----------
    kind:
        ``dataset``, ``activations``, ``run`` or ``database``.
    model, revision:
        Of which it is; None for the database, and the revision while the model is not on this machine.
    collection, hook:
        Of which it is; None where they do not apply.
    path:
        Relative to the data root; the database's is absolute. None while it depends on what is not known yet.
    digest:
        What it is named after; None as `path`.
    inputs:
        Paths of the artifacts that it is made from.
    state:
        ``finished``, ``partial`` (begun, damaged or outdated), ``missing``, or, of activations, ``freed``: not there on
        purpose, and not needed, since their run is finished.
    detail:
        What is there of a partial artifact, or why a digest is not known; empty otherwise.
    """

    kind: Kind
    model: str | None = None
    revision: str | None = None
    collection: str | None = None
    hook: str | None = None
    path: str | None = None
    digest: str | None = None
    inputs: tuple[str, ...] = ()
    state: State = "missing"
    detail: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state in ("finished", "freed")


@dataclass(frozen=True)
class PlannedPair:
    """A model with a collection: a dataset, and for each hook activations and a run, in the order of the study's hooks."""

    model: ModelSpec
    collection: CollectionSpec
    dataset: PlannedArtifact
    activations: tuple[PlannedArtifact, ...]
    runs: tuple[PlannedArtifact, ...]

    @property
    def is_extracted(self) -> bool:
        """Whether dataset and activations are finished: what is left needs no model."""
        return all(one.is_finished for one in (self.dataset, *self.activations))

    @property
    def run_ids(self) -> list[str]:
        """Ids of the runs whose digests are known."""
        return [run.digest[: results.RUN_ID_LENGTH] for run in self.runs if run.digest is not None]

    @property
    def is_finished(self) -> bool:
        """Whether dataset, activations and runs are all there."""
        return self.is_extracted and all(run.is_finished for run in self.runs)


@dataclass(frozen=True, repr=False)
class StudyPlan:
    """All artifacts of a study.

    Attributes
    ----------
    pairs:
        Models × collections, in the profile's order.
    database:
        The published database; finished if it holds the runs as they are, checked, under this version's views.
    failed_checks:
        A line for each check of severity error that fails, as recorded in the database.
    published:
        Ids of the runs that the database holds, as they are now, with their checks.
    """

    study: StudySpec
    pairs: tuple[PlannedPair, ...]
    database: PlannedArtifact
    failed_checks: tuple[str, ...] = field(default=())
    published: frozenset[str] = field(default=frozenset())

    @property
    def artifacts(self) -> tuple[PlannedArtifact, ...]:
        """Datasets, activations, runs and the database, each once."""
        by_kind = (
            [pair.dataset for pair in self.pairs],
            [one for pair in self.pairs for one in pair.activations],
            [one for pair in self.pairs for one in pair.runs],
            [self.database],
        )
        return tuple(dict.fromkeys(one for group in by_kind for one in group))

    @property
    def run_ids(self) -> list[str]:
        """Ids of the runs whose digests are known, each once, in order."""
        return list(dict.fromkeys(run_id for pair in self.pairs for run_id in pair.run_ids))

    @property
    def finished_run_ids(self) -> list[str]:
        """Ids of the runs that are finished, each once, in order."""
        digests = [run.digest for pair in self.pairs for run in pair.runs if run.is_finished and run.digest]
        return list(dict.fromkeys(digest[: results.RUN_ID_LENGTH] for digest in digests))

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do: all runs are finished, and published with their checks."""
        return all(pair.is_finished for pair in self.pairs) and self.database.is_finished

    def table(self) -> pa.Table:
        """One row per artifact: the fields of `PlannedArtifact`."""
        return pa.table(
            {name: pa.array([getattr(one, name) for one in self.artifacts], pa.string()) for name in COLUMNS}
            | {"inputs": pa.array([list(one.inputs) for one in self.artifacts], pa.list_(pa.string()))}
        )

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        every = self.artifacts
        finished = sum(one.is_finished for one in every)
        first = [one for one in every if not one.is_finished][: 2 * showing.N_SHOWN] or every[: 2 * showing.N_SHOWN]
        names = ("kind", "model", "collection", "hook", "state", "detail")
        columns = {name: [str(getattr(one, name) or "") for one in first] for name in names}
        rest = len(every) - len(first)
        headline = f"Study {self.study.name}: {finished} of {len(every)} artifacts are finished"
        return headline, columns, f"and {rest} more artifacts; .table() has all" if rest else ""

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())

    def of_model(self, model: ModelSpec) -> tuple[PlannedPair, ...]:
        """One model's pairs."""
        return tuple(pair for pair in self.pairs if pair.model == model)


def plan_study(study: StudySpec, settings: Settings | None = None, root: Location | None = None) -> StudyPlan:
    """Find out what a study consists of, and what of it is there.

    Parameters
    ----------
    settings:
        Where the data folder is; the environment's (`settings.load_settings`) if absent.
    root:
        The data folder, opened; `settings.data_uri` if absent.

    Raises
    ------
    InputError
        If a collection, feature or option is unknown, or a text or a model's folder is not there.

    Examples
    --------
    >>> from sparse_probing import load_profile, plan_study
    >>> plan = plan_study(load_profile("mine.toml"))
    >>> plan.artifacts[-1].kind
    'database'
    >>> plan.table().column_names[:3]
    ['kind', 'model', 'revision']
    """
    settings = settings or load_settings()
    root = root or Location.open(settings.data_uri)
    resolved = {model: _find_model(model, settings, root) for model in study.models}
    pairs = [
        _pair(study, model, collection, resolved[model], root)
        for model in study.models
        for collection in study.collections
    ]
    named = list(dict.fromkeys(one for pair in pairs for one in (pair.dataset, *pair.activations, *pair.runs)))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(named, pool.map(lambda one: _looked_for(one, root), named), strict=True))
    pairs = [
        replace(
            pair,
            dataset=found[pair.dataset],
            activations=tuple(
                _freed(found[one], found[run], root) for one, run in zip(pair.activations, pair.runs, strict=True)
            ),
            runs=tuple(found[one] for one in pair.runs),
        )
        for pair in pairs
    ]
    plan = StudyPlan(study, tuple(pairs), PlannedArtifact("database"))
    return _with_database(plan, settings, root)


def _find_model(model: ModelSpec, settings: Settings, root: Location) -> ResolvedModel | None:
    def kept_choice(name: str) -> str | None:
        location = root / "choices" / f"{name}.txt"
        kept = location.find_bytes()
        return kept.decode() if kept is not None else None

    return find_resolved(model, models_dir=settings.models_dir, kept_choice=kept_choice)


def _pair(
    study: StudySpec, model: ModelSpec, collection: CollectionSpec, resolved: ResolvedModel | None, root: Location
) -> PlannedPair:
    """Names and digests of a pair's artifacts, whether they are there or not."""
    name = collection.collection
    hooks = [canonical_hook(spec.hook) for spec in study.extractions]

    artifact = partial(PlannedArtifact, model=model.short_name, collection=name)
    if resolved is None:
        why = "the model is not on this machine in the form that it runs in"
        activations = [artifact("activations", hook=hook, detail=why) for hook in hooks]
        runs = [artifact("run", hook=hook, detail=why) for hook in hooks]
        return PlannedPair(model, collection, artifact("dataset", detail=why), tuple(activations), tuple(runs))
    revision, digest = resolved.revision, dataset_digest(collection, resolved.tokenizer_digest)
    dataset_path = f"datasets/{dataset_name(name, digest)}"
    activations, runs = [], []
    for spec, hook in zip(study.extractions, hooks, strict=True):
        of_hook = activations_digest(spec, resolved, digest)
        path = activations_folder(root, resolved, digest, of_hook).path.removeprefix(f"{root.path}/")
        run = run_digest(study.probing, dataset_digest=digest, activations_digest=of_hook)
        run_path = results.run_folder(root, "runs", run[: results.RUN_ID_LENGTH]).path.removeprefix(f"{root.path}/")
        activations.append(
            artifact("activations", hook=hook, revision=revision, path=path, digest=of_hook, inputs=(dataset_path,))
        )
        runs.append(
            artifact("run", hook=hook, revision=revision, path=run_path, digest=run, inputs=(dataset_path, path))
        )
    dataset = artifact("dataset", revision=revision, path=dataset_path, digest=digest)
    return PlannedPair(model, collection, dataset, tuple(activations), tuple(runs))


def _looked_for(artifact: PlannedArtifact, root: Location) -> PlannedArtifact:
    """The artifact with its state."""
    if artifact.path is None or artifact.digest is None:
        return artifact
    if artifact.kind == "run":
        state, detail = _run_state(root, artifact.digest[: results.RUN_ID_LENGTH])
    else:
        state, detail = _folder_state(root / artifact.path, artifact.digest)
    return replace(artifact, state=state, detail=detail)


def _freed(activations: PlannedArtifact, run: PlannedArtifact, root: Location) -> PlannedArtifact:
    """Activations that were freed are not needed where their run is finished."""
    if activations.is_finished or not run.is_finished or not activations.path:
        return activations
    if (root / activations.path / FREED_NAME).exists():
        return replace(activations, state="freed", detail="")
    return activations


def _folder_state(folder: Location, digest: str) -> tuple[State, str]:
    damage = find_damage(folder, digest=digest)
    if damage is not None:
        return "partial", damage
    if (folder / MANIFEST_NAME).find_bytes() is not None:
        return "finished", ""
    begun = any(True for _ in folder.children())
    return ("partial", "begun") if begun else ("missing", "")


def _run_state(root: Location, run_id: str) -> tuple[State, str]:
    folders = {kind: results.run_folder(root, kind, run_id) for kind in schemas.RESULT_KINDS}
    if (folders["runs"] / MANIFEST_NAME).find_bytes() is not None:
        damages = (find_damage(folder) or _unfinished(folder) for folder in folders.values())
        damage = next((one for one in damages if one is not None), None)
        return ("finished", "") if damage is None else ("partial", damage)
    parts = [part.name for part in results.running_folder(root, run_id).children()]
    layers = sum(results.is_part_done(root, run_id, part) for part in parts if results.is_layer_part(part))
    return ("partial", f"{layers} layer(s) probed") if parts else ("missing", "")


def _unfinished(folder: Location) -> str | None:
    return None if (folder / MANIFEST_NAME).find_bytes() is not None else f"{folder} is missing"


def _with_database(plan: StudyPlan, settings: Settings, root: Location) -> StudyPlan:
    # Not at the top: what holds a plan to the end of the process would hold DuckDB, which prints complaints then.
    from sparse_probing.warehouse.published import is_as_published, published_runs
    from sparse_probing.warehouse.shared import latest_snapshot

    run_ids = plan.run_ids
    snapshot = latest_snapshot(settings, root)
    known = published_runs(snapshot, run_ids)
    database = replace(
        plan.database,
        path=str(snapshot),
        inputs=tuple(str(run.path) for pair in plan.pairs for run in pair.runs if run.path is not None),
    )
    if known is None:
        there = snapshot.is_file()
        return replace(
            plan, database=replace(database, state="partial", detail="it cannot be read") if there else database
        )
    every = {run.digest: run.is_finished for pair in plan.pairs for run in pair.runs}
    # One that another machine published was compared with its digest.
    is_own = snapshot == settings.snapshot_path
    as_it_was = not is_own or is_as_published(settings.working_path, settings.snapshot_path)
    current = [run_id for run_id in run_ids if _is_published(known, root, run_id)]
    whole = as_it_was and known.is_of_this_version and all(every.values()) and len(current) == len(every)
    reasons = [
        *(["published by another version"] if not known.is_of_this_version else []),
        *(["written to since it was published"] if not as_it_was else []),
        f"{len(current)} of {len(every)} run(s) published as they are",
    ]
    detail = "" if whole else "; ".join(reasons)
    state: State = "finished" if whole else "partial"
    return replace(
        plan,
        database=replace(database, state=state, detail=detail),
        failed_checks=known.failed_checks,
        published=frozenset(current),
    )


def _is_published(known: PublishedRuns, root: Location, run_id: str) -> bool:
    return run_id in known.checked and known.fragments.get(run_id) == results.fragment_digests(root, run_id)


def narrowed(
    plan: StudyPlan,
    root: Location,
    *,
    method: str | None = None,
    features: Sequence[str] = (),
    layers: Sequence[int] = (),
) -> StudySpec:
    """A planned study with one method, on some of its features and layers: other runs, of the same datasets and activations.

    Collections that have none of the features are left out.

    Parameters
    ----------
    plan:
        Of a study whose datasets are there.
    root:
        The data folder.
    method:
        A name in `probes.METHODS`, fitted on every layer; the study's own methods if absent. Features of the other task
        are left out.
    features, layers:
        All if empty.

    Raises
    ------
    InputError
        If a dataset is missing, or no dataset has a feature, or there is no such method.
    """
    from sparse_probing.probes import METHODS

    if method is not None and method not in METHODS:
        raise InputError(f"Method {method!r} is unknown; {choices(method, list(METHODS))}.", remedy="Name one of them.")
    tasks: dict[str, dict[str, str]] = {}
    for pair in plan.pairs:
        if not pair.dataset.is_finished:
            raise InputError(
                f"The dataset of {pair.collection.collection} is not there"
                f"{f': {pair.dataset.detail}' if pair.dataset.detail else ''}.",
                remedy="Run: sparse-probing extract --profile PROFILE",
            )
        facts = read_manifest(root / str(pair.dataset.path)).facts["features"]
        tasks.setdefault(pair.collection.model_dump_json(), {}).update({fact["name"]: fact["task"] for fact in facts})
    known = {name: task for of_collection in tasks.values() for name, task in of_collection.items()}
    for feature in features:
        if feature not in known:
            raise InputError(
                f"No dataset has a feature {feature!r}; {choices(feature, list(known))}.", remedy="Name one of them."
            )
    task = METHODS[method].task if method is not None else None
    wanted = {name for name in (features or known) if task in (None, known[name])}
    if not wanted:
        raise InputError(
            f"{method} is for {task}; none of the features is.", remedy="Name another method, or other features."
        )
    probing = plan.study.probing.model_dump()
    if method is not None:
        fields = ("methods", "best_layer_methods", "regression_methods", "best_layer_regression_methods")
        probing |= dict.fromkeys(fields, ()) | {
            "methods" if task == "classification" else "regression_methods": (method,)
        }
    if wanted != set(known):
        probing["features"] = tuple(wanted)
    if layers:
        probing["layers"] = tuple(layers)
    kept = [one for one in plan.study.collections if wanted & set(tasks[one.model_dump_json()])]
    return plan.study.model_copy(update={"collections": tuple(kept), "probing": ProbingSpec.model_validate(probing)})


def rows(plan: StudyPlan) -> Iterator[dict[str, object]]:
    """A plan's artifacts as rows of plain values, for tables and JSON."""
    for artifact in plan.artifacts:
        yield {name: getattr(artifact, name) for name in COLUMNS} | {"inputs": list(artifact.inputs)}
