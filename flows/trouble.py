"""Flow: report what went wrong of late. An automation runs it (`flows.automations`), and so may anyone."""

from __future__ import annotations

from prefect import flow

from flows.automations import REPORT
from flows.pool import POOLS
from flows.surroundings import prepare_environment
from tasks.trouble import recent_trouble, send_trouble, write_trouble


@flow(name=REPORT, flow_run_name="report trouble", persist_result=False)
def report_trouble(hours: int = 24) -> int:
    """List the runs and checks that failed, as an artifact and, where there is a block for it, as a message; returns how many.

    No message is sent where nothing failed, or nothing but what the last message said.

    Parameters
    ----------
    hours:
        How far to look back.
    """
    prepare_environment()
    found = recent_trouble(sorted(POOLS), hours=hours, without=[REPORT])
    text = write_trouble(found, hours=hours)
    if found:
        send_trouble(found, text, hours=hours)
    return len(found)
