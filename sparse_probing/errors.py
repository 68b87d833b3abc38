"""The exceptions of this project: few, each message with subject, what was found, what was expected and a remedy.

Only exception types live here. The code that raises one writes the message, without credentials or with (they are taken out of
it); the command line prints it on one line.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparse_probing.credentials import without_secrets


class SparseProbingError(Exception):
    """A failure that a user can act on.

    Parameters
    ----------
    message:
        Subject, what was found and what was expected, in one line.
    remedy:
        What to do about it, in one line.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = message = without_secrets(message)
        self.remedy = remedy = without_secrets(remedy)
        # What others said and what users wrote may hold line ends.
        super().__init__(" ".join(f"{message} {remedy}".split("\n")).strip())

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.remedy))


def _rebuild(cls: type[SparseProbingError], message: str, remedy: str) -> SparseProbingError:
    return cls(message, remedy=remedy)


class InputError(SparseProbingError):
    """The request cannot be met as written: an unknown name, a broken profile, a missing package. Exit code 2."""

    exit_code = 2


class ArtifactError(SparseProbingError):
    """An artifact on disk is missing, unfinished, or does not match its manifest."""


class DamageError(ArtifactError):
    """A finished artifact's file is gone, or not what was written. What is damaged can be set aside and made anew.

    Parameters
    ----------
    path:
        The file, as a path on the data folder's filesystem.
    """

    def __init__(self, message: str, *, path: str, remedy: str = "") -> None:
        super().__init__(
            message,
            remedy=remedy
            or "Run the study again, or sparse-probing repair: what is damaged is set aside and made anew.",
        )
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_damage, (self.message, self.path, self.remedy))


def _rebuild_damage(message: str, path: str, remedy: str) -> DamageError:
    return DamageError(message, path=path, remedy=remedy)


class DataError(SparseProbingError):
    """Arrays or labels that no probe can be fitted to: one class only, not a number, too few samples."""


class CheckFailure(SparseProbingError):
    """A validation check of severity error failed; those of results are raised after everything was published."""

    @classmethod
    def of_dataset(cls, dataset: str, failed: Sequence[str]) -> CheckFailure:
        """The failure of some checks of a dataset, a line each."""
        return cls(
            f"Dataset {dataset}: {failed[0]} ({len(failed)} checks failed).",
            remedy="Mend the text source, and run the study again.",
        )

    @classmethod
    def of_results(cls, failed: Sequence[str]) -> CheckFailure:
        """The failure of some checks, a line each."""
        return cls(
            f"{len(failed)} validation check(s) of severity error failed: {'; '.join(failed)}.",
            remedy="Results are published; see: sparse-probing check",
        )
