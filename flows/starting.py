"""What every flow does first: the environment of a worker's process, the study it is about, what cannot work, tags.

A flow that another flow called, in this process or through a deployment, was checked by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from pydantic import Field

from flows.failures import retry_first_connections, say_when_the_server_is_away
from flows.surroundings import prepare_environment
from sparse_probing.config import CollectionSpec, ModelSpec, StudySpec, load_profile
from sparse_probing.settings import load_settings
from tasks.checkpoints import expanded
from tasks.locations import data_root
from tasks.preflight import refuse_the_impossible
from tasks.progress import STUDY_TAG

if TYPE_CHECKING:
    from sparse_probing.planning import StudyPlan


# The profiles that come with the package, as the page of a deployment offers them; a test compares the two.
ShippedProfile = Literal["demo", "pythia"]
ProfileFile = Annotated[str, Field(pattern=r"\.toml$|/", title="Path of a TOML file", examples=["studies/mine.toml"])]
# What a deployment's run may be given: anything else is refused when it is asked for, not when it begins.
Profile = Annotated[ShippedProfile, Field(title="One that comes with the package")] | ProfileFile


def as_parameter(profile: str) -> str:
    """A profile as a parameter of flows: a file whose name looks like that of no file gets the path of its folder."""
    is_known = profile in get_args(ShippedProfile) or profile.endswith(".toml") or "/" in profile
    return profile if is_known else f"./{profile}"


@contextmanager
def started(profile: str, spec: StudySpec | None) -> Iterator[StudySpec]:
    """The study of a flow's run: `spec`, or what `profile` names. The run carries its tags; its tasks carry none.

    Prefect asks the server about a limit for each tag of a task, before the task and after: the demo took a fifth longer.

    Raises
    ------
    InputError
        If the study cannot run as written, unless the caller's run was checked already.
    """
    # A worker's process, too: a pool does not set the environment of its runs.
    prepare_environment()
    study = expanded(spec or load_profile(profile))
    _tag_this_run(tags_of(study))
    with _patience():
        if not is_nested():
            refuse_the_impossible(study)
        yield study


def is_nested() -> bool:
    """Whether another flow's run called this one."""
    context = FlowRunContext.get()
    return bool(context is not None and context.flow_run is not None and context.flow_run.parent_task_run_id)


def plan_of(study: StudySpec) -> StudyPlan:
    """What of a study is there, in this process's data folder."""
    # Not at the top: Prefect keeps flows to the very end of the process, and DuckDB prints complaints when it is kept that long.
    from sparse_probing.planning import plan_study

    return plan_study(study, load_settings())


def narrow(study: StudySpec, *, method: str | None, features: Sequence[str], layers: Sequence[int]) -> StudySpec:
    """A study with one method, on some features and layers (`planning.narrowed`)."""
    from sparse_probing.planning import narrowed

    return narrowed(plan_of(study), data_root(), method=method, features=features, layers=layers)


def only(study: StudySpec, model: ModelSpec, collections: tuple[CollectionSpec, ...] | None = None) -> StudySpec:
    """A study of one of its models alone, and of some of its collections, or all."""
    return study.model_copy(update={"models": (model,), "collections": collections or study.collections})


def tags_of(study: StudySpec) -> list[str]:
    """What a run is found by at Prefect's page: study, models with their revisions, collections."""
    models = {f"model: {model.short_name}": None for model in study.models}
    revisions = {f"revision: {model.revision}": None for model in study.models}
    collections = {f"collection: {spec.collection}": None for spec in study.collections}
    return [f"{STUDY_TAG}{study.name}", *_few(models, "models"), *_few(revisions, "revisions"), *collections]


# A run with a hundred tags is found by none.
_MOST_TAGS = 5


def _few(names: dict[str, None], what: str) -> list[str]:
    return list(names) if len(names) <= _MOST_TAGS else [f"{len(names)} {what}"]


def run_name(work: str) -> str:
    """A flow run's name: the work, the study, and the model where there is one."""
    given = flow_run.parameters
    spec, profile = given.get("spec"), given.get("profile") or ""
    if spec is None:
        return f"{work} {profile}"
    models = [model.short_name for model in spec.models]
    revisions = [model.revision for model in spec.models]
    if len(models) > 1:
        return f"{work} {spec.name}"
    of_model = models[0] if revisions[0] == "main" else f"{models[0]} at {revisions[0]}"
    return f"{work} {spec.name}: {of_model}"


def _tag_this_run(names: list[str]) -> None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    with get_client(sync_client=True) as client:
        tags = {*context.flow_run.tags, *names}
        client.update_flow_run(context.flow_run.id, tags=tags)
    # What runs inside looks here for the study's name (`tasks.progress`), not at the server.
    context.flow_run.tags = sorted(tags)


@contextmanager
def _patience() -> Iterator[None]:
    """Wait for a server that is away for a while; the command line says so by itself, and a worker's run in its log."""
    api_url = get_current_settings().api.url
    if not api_url:
        yield
        return
    retry_first_connections()
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        yield
        return
    with say_when_the_server_is_away(str(api_url), get_run_logger().warning):
        yield
