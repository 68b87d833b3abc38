"""From result fragments to the published snapshot: load, compare, check, publish, one process at a time.

The steps themselves are in `loading`, `comparing` and `checks`. Here each gets the lock of the working database, and a
working database that turns out to be damaged is rebuilt and the step repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sparse_probing.errors import DamageError
from sparse_probing.settings import MOST_SCORES
from sparse_probing.store.filesystem import Location
from sparse_probing.store.locks import Say, held
from sparse_probing.warehouse import checks, comparing, connection, lineage, loading, published, shared, working
from sparse_probing.warehouse.checks import CheckResult
from sparse_probing.warehouse.comparing import Intervals
from sparse_probing.warehouse.loading import LoadReport

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Publisher:
    """The working database of a data folder and its published snapshot.

    Attributes
    ----------
    root:
        The data folder, with the result fragments.
    working, snapshot:
        Paths of the two DuckDB files, both local.
    intervals:
        Computes the intervals of differences (`runs.comparing.intervals`).
    say:
        Told which process is waited for, and every warning.
    most_scores:
        As `settings.Settings` has it.
    """

    root: Location
    working: Path
    snapshot: Path
    intervals: Intervals
    say: Say
    most_scores: int = MOST_SCORES

    def load(self, run_ids: Sequence[str] = ()) -> LoadReport:
        """Merge every finished run into the working database and compute the intervals of differences.

        Raises
        ------
        ArtifactError
            If one of `run_ids` cannot be loaded; other runs that cannot are named in a warning.
        """
        report = self._alone(self._load)
        for run_id in run_ids:
            if run_id in report.left_out:
                raise report.left_out[run_id]
        return report

    def check(self, run_ids: Sequence[str]) -> list[CheckResult]:
        """Run every check over the runs and record the outcomes; returns those of `run_ids`."""
        return self._alone(lambda: self._check(run_ids))

    def publish(self) -> Path:
        """Replace the snapshot by a copy of the working database, also beside the artifacts; returns its path on this machine."""
        self._alone(self._publish)
        return self.snapshot

    def forget(self, run_ids: Sequence[str]) -> None:
        """Take runs out of the working database; they come back with the next load unless their fragments go."""
        self._alone(lambda: loading.forget_runs(self.working, run_ids, snapshot=self.snapshot))

    def look_again(self) -> None:
        """Find out anew which artifacts that runs were made from are there, as after some were freed."""
        self._alone(lambda: lineage.look_again(self.working, self.root, snapshot=self.snapshot))

    def _alone(self, act: Callable[[], Answer]) -> Answer:
        with held(self.working.with_name(f"{self.working.name}.lock"), what="the results database", say=self.say):
            connection.wait_until_free(self.working, say=self.say)
            try:
                return act()
            except DamageError as damage:
                if damage.path != str(self.working):
                    raise
                moved = working.move_aside(self.working)
                self.say(f"Warning: {damage.message} It was moved to {moved}, and is built anew.")
                self._load()
                self._check(())
                return act()

    def _load(self) -> LoadReport:
        report = loading.load_results(self.working, self.root, snapshot=self.snapshot, most_scores=self.most_scores)
        comparing.compare(self.working, self.intervals)
        if report.rebuilt_from is not None:
            self.say(
                f"Warning: the results database was of another version or damaged. It was moved to "
                f"{report.rebuilt_from}, and built anew."
            )
        for run_id, error in report.left_out.items():
            self.say(f"Warning: run {run_id} was not loaded, and is as it was published: {error}")
        return report

    def _check(self, run_ids: Sequence[str]) -> list[CheckResult]:
        # Also runs without a recorded outcome, as after a database was rebuilt.
        wanted = [*run_ids, *checks.unchecked_runs(self.working)]
        return [result for result in checks.run_checks(self.working, wanted, self.root) if result.run_id in run_ids]

    def _publish(self) -> None:
        removed = loading.publish(self.working, self.snapshot)
        if removed is not None:
            self.say(
                f"Warning: someone wrote to {self.snapshot}; what they wrote is gone, with the log {removed.name} that "
                "they left. Open it read-only; keep tables of your own in another file and attach this one."
            )
        if shared.upload(self.snapshot, self.root, self.snapshot.parent) is None:
            return
        # What other machines finished meanwhile: the one that uploads last has it all.
        while published.lacks_runs(self.snapshot, self.root) and self._load().n_fragments:
            self._check(())
            loading.publish(self.working, self.snapshot)
            shared.upload(self.snapshot, self.root, self.snapshot.parent)
