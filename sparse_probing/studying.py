"""A whole study in one process, without an orchestrator: from text to the published snapshot.

Only the order of the steps lives here, with the locks that keep processes apart which share a data folder. The steps are in
`datasets`, `activations`, `runs` and `warehouse`. Digests decide what is done again, so a study that was interrupted goes on
where it stopped, and the Prefect flow and this function find and continue each other's work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_probing import showing
from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec, StudySpec, load_profile
from sparse_probing.errors import CheckFailure, DamageError, InputError
from sparse_probing.settings import Settings, load_settings
from sparse_probing.store import results
from sparse_probing.store.filesystem import Location
from sparse_probing.store.locks import Say, owned
from sparse_probing.store.making import making, set_aside_damage
from sparse_probing.store.manifests import find_manifest, read_manifest

if TYPE_CHECKING:
    import pyarrow as pa

    from sparse_probing.models.resolved import ResolvedModel
    from sparse_probing.planning import StudyPlan
    from sparse_probing.runs.planned import PlannedRun
    from sparse_probing.warehouse.connection import Connection
    from sparse_probing.warehouse.publishing import Publisher

# Damaged artifacts that are set aside and made anew before the study gives up.
MOST_REPAIRS = 5


class StudyRuns(list[str]):
    """Ids of a study's runs, in the order of models, collections and hooks: a list that shows the best neurons.

    Attributes
    ----------
    snapshot:
        Path of the published database that holds the results.
    """

    def __init__(self, run_ids: Iterable[str], snapshot: Path) -> None:
        super().__init__(run_ids)
        self.snapshot = snapshot

    def connect(self) -> Connection:
        """Open the published database read-only (`warehouse.connect`)."""
        from sparse_probing.warehouse import connect

        return connect(self.snapshot)

    def table(self) -> pa.Table:
        """One row per run and feature under the names of view `best_neuron_per_feature`, best on validation first.

        Raises
        ------
        InputError
            If the published database cannot be opened.
        """
        from sparse_probing.warehouse import reads

        with self.connect() as connection:
            return reads.best_neurons_table(connection, self)

    def _shown(self) -> tuple[str, dict[str, list[str]], str]:
        headline = f"{len(self)} run{'' if len(self) == 1 else 's'} in {self.snapshot}"
        try:
            table = self.table()
        except InputError as error:
            return headline, {}, error.message
        rows = table.slice(0, 2 * showing.N_SHOWN).to_pylist()
        columns = {name: [str(row[name]) for row in rows] for name in ("model", "feature", "layer", "neuron")}
        columns["direction"] = [showing.signed(row["direction"] or 0) for row in rows]
        for name in ("validation_mcc", "test_mcc", "test_mcc_low", "test_mcc_high"):
            columns[name] = [showing.decimals(row[name]) for row in rows]
        columns["q_value"] = [
            f"{'≤' * bool(row['p_value_is_bound'])}{showing.decimals(row['q_value'])}" for row in rows
        ]
        rest = table.num_rows - len(rows)
        return headline, columns if rows else {}, f"and {rest} more features; .table() has all" if rest else ""

    def __repr__(self) -> str:
        return showing.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return showing.as_html(*self._shown())


def run_study(
    study: StudySpec | str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    say: Say = print,
    n_threads: int = 2,
) -> StudyRuns:
    """Run a study in this process and publish its results; whatever is finished already is not computed again.

    The results are those of the Prefect flow: the same artifacts under the same digests, byte for byte.

    Parameters
    ----------
    study:
        A study, the name of a profile that comes with the package, or the path of a profile file.
    data:
        Folder or URI of all artifacts; the environment's `SPARSE_PROBING_DATA`, or ``data``, if absent.
    say:
        Called with one line of text when a step is done, for each warning, and while another process is waited for.
        Prints by default.
    n_threads:
        Layers that are probed at the same time. Results do not depend on it.

    Returns
    -------
    StudyRuns
        The ids of the runs, one per model, collection and hook.

    Raises
    ------
    InputError
        If the study cannot run as written; found before any expensive work.
    DataError
        If a class or feature has too little text for three splits, or an activation is not a number.
    ArtifactError
        If files cannot be written.
    CheckFailure
        If a dataset fails a check of severity error; or if results do, after they were published.

    Examples
    --------
    ``mine.toml`` is a profile, such as `sparse-probing profile new mine.toml` writes:

    >>> from sparse_probing import run_study
    >>> runs = run_study("mine.toml", data="mine")
    Model ...
    >>> runs.table().column_names[:3]
    ['run_id', 'study', 'model']
    """
    from sparse_probing.planning import plan_study
    from sparse_probing.preflight import preflight

    spec = study if isinstance(study, StudySpec) else load_profile(os.fspath(study))
    settings = load_settings(data)
    preflight(spec, settings)
    root = Location.open(settings.data_uri)
    plan = plan_study(spec, settings, root)
    if plan.is_finished:
        say(f"Study {spec.name} was finished: {len(plan.run_ids)} run(s) in {settings.shown_data}")
        if plan.failed_checks:
            raise CheckFailure.of_results(plan.failed_checks)
        return StudyRuns(plan.run_ids, settings.snapshot_path)
    return StudyRuns(_Study(spec, settings, root, say, n_threads).run(plan), settings.snapshot_path)


@dataclass(frozen=True)
class _Study:
    """A study at work in one data folder."""

    spec: StudySpec
    settings: Settings
    root: Location
    say: Say
    n_threads: int

    def resolve(self, model: ModelSpec) -> ResolvedModel:
        """Find a model's files, and check that it has what the study asks for."""
        from sparse_probing.models import fits, loading

        resolved = loading.resolve_model(
            model,
            models_dir=self.settings.models_dir,
            device=self.settings.device,
            # One dtype for all processes that share the data folder.
            keep_first=lambda name, decide: (self.root / "choices" / f"{name}.txt").keep_first(decide),
        )
        lines = fits.check_fits(
            resolved, loading.load_tokenizer(resolved), self.spec.collections, self.spec.extractions
        )
        self.say(
            f"Model {resolved.short_name}, revision {resolved.revision}: {resolved.n_layers} layers of "
            f"{resolved.n_neurons} neurons, {resolved.dtype}"
        )
        for line in lines:
            self.say(line)
        return resolved

    def run(self, plan: StudyPlan) -> list[str]:
        """All steps. A damaged artifact is set aside and the steps are repeated: they find the others done."""
        from sparse_probing.planning import plan_study

        for _ in range(MOST_REPAIRS):
            try:
                return self._steps(plan)
            except DamageError as damage:
                set_aside_damage(self.root, damage.path, say=self.say)
                plan = plan_study(self.spec, self.settings, self.root)
        return self._steps(plan)

    def _steps(self, plan: StudyPlan) -> list[str]:
        finished = {model for model in self.spec.models if all(pair.is_finished for pair in plan.of_model(model))}
        # Every model is resolved and checked before anything is computed for the first.
        resolved = {model: self.resolve(model) for model in self.spec.models if model not in finished}
        run_ids: list[str] = []
        try:
            for model in self.spec.models:
                pairs = plan.of_model(model)
                left = tuple(pair.collection for pair in pairs if not pair.is_finished)
                made = iter(self._of_model(model, resolved[model], left) if left else ())
                run_ids += [run_id for pair in pairs for run_id in (pair.run_ids if pair.is_finished else next(made))]
        except DamageError:
            raise
        except Exception:
            # The models before it are finished: what they gave is seen, whatever became of this one.
            if run_ids:
                with suppress(CheckFailure):
                    self._publish(run_ids)
            raise
        self._publish(run_ids)
        return run_ids

    def _of_model(
        self, model: ModelSpec, resolved: ResolvedModel, collections: tuple[CollectionSpec, ...]
    ) -> list[list[str]]:
        """Ids of the runs of each collection."""
        datasets = [self._build(collection, resolved) for collection in collections]
        for dataset in datasets:
            self._check(dataset)
        activations = [
            self._extract(collection, dataset, resolved)
            for collection, dataset in zip(collections, datasets, strict=True)
        ]
        runs = [
            [self._plan_run(model, collection, dataset, extracted) for extracted in artifacts]
            for collection, dataset, artifacts in zip(collections, datasets, activations, strict=True)
        ]
        self._probe([run for of_collection in runs for run in of_collection])
        return [[run.run_id for run in of_collection] for of_collection in runs]

    def _build(self, collection: CollectionSpec, resolved: ResolvedModel) -> Location:
        """A collection's dataset, built or found."""
        from sparse_probing.datasets import build, doubts
        from sparse_probing.models import loading

        folder = build.build_dataset(
            collection,
            root=self.root,
            tokenizer=loading.load_tokenizer(resolved),
            tokenizer_digest=resolved.tokenizer_digest,
            making=lambda folder: making(self.root, folder, say=self.say),
        )
        facts = read_manifest(folder).facts
        self.say(f"Dataset {folder.name}: {len(facts.get('features', ()))} features, {facts['n_sequences']} sequences")
        for line in doubts.doubts(resolved.short_name, collection.collection, facts):
            self.say(line)
        return folder

    def _check(self, dataset: Location) -> None:
        from sparse_probing.warehouse import checks

        failed = checks.failed_errors(checks.check_stored_dataset(dataset))
        if failed:
            raise CheckFailure.of_dataset(self._relative(dataset), [one.line for one in failed])

    def _extract(self, collection: CollectionSpec, dataset: Location, resolved: ResolvedModel) -> list[Location]:
        """Activations at every hook of the study, extracted in one pass or found; one artifact a hook."""
        from sparse_probing.activations import extraction, naming
        from sparse_probing.datasets import build

        dataset_digest = build.dataset_digest(collection, resolved.tokenizer_digest)
        # Two names of one hook have one artifact.
        wanted: dict[str, ExtractionSpec] = {
            naming.activations_digest(spec, resolved, dataset_digest): spec for spec in self.spec.extractions
        }
        folders = {digest: naming.activations_folder(self.root, resolved, dataset_digest, digest) for digest in wanted}
        with ExitStack() as owned_folders:
            for digest, folder in sorted(folders.items()):
                owned_folders.enter_context(making(self.root, folder, digest=digest, say=self.say))
            missing = [wanted[digest] for digest in folders if find_manifest(folders[digest], digest=digest) is None]
            if missing:
                extraction.extract_datasets(dataset, resolved, missing, root=self.root, device=self.settings.device)
        for folder in folders.values():
            facts = read_manifest(folder).facts
            self.say(f"Activations of {dataset.name} at {facts['hook']}: {facts['n_rows']} rows")
        return list(folders.values())

    def _plan_run(
        self, model: ModelSpec, collection: CollectionSpec, dataset: Location, activations: Location
    ) -> PlannedRun:
        from sparse_probing.runs import planned

        run = planned.plan_run(
            self.root,
            study=self.spec.name,
            model=model,
            collection=collection,
            probing=self.spec.probing,
            dataset=self._relative(dataset),
            activations=self._relative(activations),
            say=self.say,
        )
        if run.finished:
            self.say(f"Run {run.run_id} was there: {run.title}, {len(run.layers)} layers")
        return run

    def _probe(self, runs: Sequence[PlannedRun]) -> None:
        """Probe every run that is not finished; other processes are kept from the same runs meanwhile."""
        unfinished = {run.run_id: run for run in runs if not run.finished}
        if not unfinished:
            return
        from sparse_probing.runs.imports import import_for_stages

        with ExitStack() as owned_runs:
            # In one order in every process, or two could wait for each other.
            for run_id in sorted(unfinished):
                folder = results.running_folder(self.root, run_id)
                owned_runs.enter_context(owned(self.root, folder, say=self.say))
            import_for_stages()
            with _one_blas_thread(), ThreadPoolExecutor(self.n_threads) as pool:
                for run in unfinished.values():
                    # Another process that was waited for may have finished it.
                    if not results.is_finished(self.root, run.run_id):
                        self._probe_run(run, pool)

    def _probe_run(self, run: PlannedRun, pool: ThreadPoolExecutor) -> None:
        from sparse_probing.runs import inputs, stages

        try:
            list(pool.map(lambda layer: stages.probe_layer(self.root, run, layer), run.layers))
            chosen = stages.choose_layers(self.root, run)
            parts = pool.map(lambda layer: stages.probe_best_layer(self.root, run, layer, chosen[layer]), chosen)
            stages.finish_run(self.root, run, list(parts))
        finally:
            inputs.forget_inputs(self.root, run)
        self.say(f"Run {run.run_id} is finished: {run.title}, {len(run.layers)} layers")

    def _publish(self, run_ids: Sequence[str]) -> None:
        """Load, check and publish the results and write the report; failed checks raise after that."""
        from sparse_probing.reports import html
        from sparse_probing.warehouse import checks

        publisher = self._publisher()
        publisher.load(run_ids)
        failed = checks.failed_errors(publisher.check(run_ids))
        snapshot = publisher.publish()
        report = html.write_report(snapshot, self.settings.reports_dir / "index.html")
        self.say(f"Published {snapshot}; report {report}")
        if failed:
            raise CheckFailure.of_results([one.line for one in failed])

    def _publisher(self) -> Publisher:
        from sparse_probing.runs.comparing import intervals
        from sparse_probing.warehouse.publishing import Publisher

        settings = self.settings
        return Publisher(
            self.root, settings.working_path, settings.snapshot_path, intervals, self.say, settings.most_scores
        )

    def _relative(self, location: Location) -> str:
        return location.path.removeprefix(f"{self.root.path}/")


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread: layers are probed side by side, and a product's last bits depend on its threads."""
    import scipy.linalg  # noqa: F401  (its own BLAS must be loaded to be limited)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
