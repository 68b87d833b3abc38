"""Where artifacts lie: tasks hand each other paths relative to the data root, never arrays or frames."""

from __future__ import annotations

from sparse_probing.settings import load_settings
from sparse_probing.store.filesystem import Location


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
