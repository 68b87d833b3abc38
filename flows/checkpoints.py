"""Flow: look for new checkpoints and start a study of each. A schedule runs it; two at once do no harm."""

from __future__ import annotations

from prefect import flow

from flows.starting import Profile
from flows.surroundings import prepare_environment
from sparse_probing.config import StudySpec, load_profile
from tasks.checkpoints import known_attempts, scan, start_studies
from tasks.preflight import refuse_wrong_names


@flow(name="scan-checkpoints", flow_run_name="scan {profile}", persist_result=False)
def scan_checkpoints(profile: Profile, spec: StudySpec | None = None) -> list[dict[str, object]]:
    """Look at every checkpoint of a study, and start a study of those that are new through deployment `study-checkpoint`.

    Parameters
    ----------
    profile:
        Name of a profile, or path of a TOML file, with a section `[checkpoints]`. Ignored when `spec` is given.
    spec:
        The study itself.

    Returns
    -------
    list of dict
        A row per checkpoint: revision, training_step, complete, studied, reason.
    """
    prepare_environment()
    study = spec or load_profile(profile)
    refuse_wrong_names(study)
    known = known_attempts(study)
    return start_studies(study, scan(study), known)
