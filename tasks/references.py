"""What tasks hand to each other: names of artifacts, relative to the data root. Never arrays or frames."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec, ProbingSpec, StudySpec
from sparse_probing.settings import load_settings
from sparse_probing.store.filesystem import Location

USUAL_HOOK = ExtractionSpec().hook


def data_root() -> Location:
    """The root of all artifacts, as this process is configured."""
    return Location.open(load_settings().data_uri)


def relative(location: Location) -> str:
    """Path of an artifact relative to the data root: valid on every machine that shares the storage."""
    return location.path.removeprefix(data_root().path + "/")


def located(reference: str) -> Location:
    """The location a relative reference stands for on this machine."""
    return data_root() / reference


def folder_collection(dataset: str) -> str:
    """Name of the collection in a dataset's reference ``datasets/<collection>-<digest>``."""
    return dataset.rsplit("/", 1)[-1].rsplit("-", 1)[0]


@dataclass(frozen=True)
class RunReference:
    """One run: a model's activations at one hook on one collection, probed in one way."""

    run_id: str
    study: str
    model: ModelSpec
    collection: CollectionSpec
    probing: ProbingSpec
    dataset: str
    activations: str
    hook: str
    revision: str
    layers: tuple[int, ...]
    finished: bool

    @property
    def title(self) -> str:
        """For logs."""
        return f"{self.model.short_name} · {self.text}"

    @property
    def text(self) -> str:
        """For progress bars: the collection, and the hook where it is not the usual one."""
        name = self.collection.collection
        return name if self.hook == USUAL_HOOK else f"{name} · {self.hook}"


def studied_pairs(study: StudySpec) -> list[tuple[ModelSpec, CollectionSpec]]:
    """Every model with every collection, in the order of the profile."""
    return [(model, collection) for model in study.models for collection in study.collections]
