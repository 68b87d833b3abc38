"""Artifacts as Prefect's assets: which was made from which, for whoever's server draws that (Prefect Cloud does).

Each finished artifact is told once, as a task under `@materialize` would, but only where it was made now, and under a name that
holds neither the data folder nor a key of it. Decision note 0161.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext, TaskRunContext
from prefect.settings import get_current_settings
from prefect.states import Completed

# A scheme of Prefect's assets has no dash.
SCHEME = "sparseprobing://"


def tell_made(reference: str, title: str, *, of: Sequence[str] = (), facts: dict[str, object]) -> None:
    """Tell the server of this run that an artifact was made; outside of a run, or without a server, nothing.

    Parameters
    ----------
    reference:
        Of the artifact: its path below the data folder, which its digest names.
    title:
        What a person calls it.
    of:
        References of the artifacts that it was made from.
    facts:
        Of this one time.
    """
    if TaskRunContext.get() is None or not get_current_settings().api.url:
        return
    made = Asset(key=SCHEME + reference, properties=AssetProperties(name=title))
    AssetContext(
        downstream_assets={made},
        direct_asset_dependencies={Asset(key=SCHEME + one) for one in of},
        materialization_metadata={made.key: facts},
    ).emit_events(Completed())
