"""A statement that fails in Prefect's server leaves no cursor that could make its event loop wait for SQLite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WAITING = """
import asyncio, gc, sys
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

CLOSING = sys.argv[2] == "closing"
if CLOSING:
    from flows.server_process import close_failed_cursors
    close_failed_cursors()

async def main():
    engine = create_async_engine("sqlite+aiosqlite:///" + sys.argv[1], poolclass=sa.pool.NullPool)
    @sa.event.listens_for(engine.sync_engine, "connect")
    def own_transactions(connection, _):
        connection.isolation_level = None
    async with engine.connect() as first, engine.connect() as second:
        run = lambda connection, text: connection.exec_driver_sql(text)
        for text in ("PRAGMA journal_mode = WAL", "CREATE TABLE t (x INTEGER PRIMARY KEY)", "INSERT INTO t VALUES (1)"):
            await run(first, text)
        await run(second, "PRAGMA busy_timeout = 6000")
        await run(second, "BEGIN")
        try:
            await run(second, "INSERT INTO t VALUES (1)")
        except sa.exc.IntegrityError as error:
            # Kept, as a log or a group of exceptions keeps one for a while.
            kept = error
        await run(second, "ROLLBACK")
        await run(first, "BEGIN IMMEDIATE")
        waiting = asyncio.create_task(run(second, "INSERT INTO t VALUES (2)"))
        await asyncio.sleep(1)
        del kept
        gc.collect()
        await run(first, "COMMIT")
        try:
            await waiting
            print("went on")
        except sa.exc.OperationalError as error:
            print(error.orig)
    await engine.dispose()

asyncio.run(main())
"""


@pytest.mark.parametrize(("how", "said"), [("closing", "went on"), ("as it is", "database is locked")])
def test_the_loop_does_not_wait_for_a_connection_that_waits(how: str, said: str, tmp_path: Path) -> None:
    """One connection has the database, another waits for it, and a failed statement of the other is freed: the first can go on.

    Without our cursors it cannot. Should that no longer be so, neither SQLAlchemy nor Python needs them.
    """
    done = subprocess.run(
        [sys.executable, "-c", WAITING, str(tmp_path / "a.db"), how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == said, done.stderr
