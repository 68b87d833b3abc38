"""Events that tell others what became known: a checkpoint, a published study, a failed check. Nothing here decides on them."""

from __future__ import annotations

import uuid

from prefect.events import emit_event
from prefect.settings import get_current_settings

_SPACE = uuid.UUID("6f1d4c55-6b6c-4b7e-9a55-3c0f7f0a4b5e")


def tell(event: str, subject: str, facts: dict[str, object], *, once: str | None = None) -> None:
    """Emit an event where there is a server: ``sparse-probing.<event>`` about ``sparse-probing.<subject>``.

    Parameters
    ----------
    once:
        Events of one text are one event, whoever emits them and how often.
    """
    if not get_current_settings().api.url:
        return
    name = f"sparse-probing.{event}"
    known = uuid.uuid5(_SPACE, f"{name} {subject} {once}") if once is not None else None
    emit_event(name, {"prefect.resource.id": f"sparse-probing.{subject}"}, payload=facts, id=known)
