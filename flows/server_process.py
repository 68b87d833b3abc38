"""Prefect's server on SQLite, without the minute in which it answers nobody: ``python -m flows.server_process --host 127.0.0.1``.

It takes the arguments of ``prefect server start``. Nothing of ours runs in it; Postgres is not touched.

A statement that fails, for example because another connection writes at that moment, leaves its cursor behind in the traceback.
Python frees the cursor later, on the thread of the event loop, and SQLite makes that thread wait while the cursor's connection
waits for the database. If the connection that has the database needs the event loop to go on, all wait for each other until
SQLite gives up after 60 s: requests fail, and events are lost (docs/decisions/0166). Here the cursor of a statement that fails
is closed at once, on the thread that ran it.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any


class ClosingCursor(sqlite3.Cursor):
    """A cursor that is closed when a statement of it fails."""

    def execute(self, *arguments: Any) -> ClosingCursor:
        """Run one statement."""
        try:
            return super().execute(*arguments)
        except sqlite3.Error:
            self.close()
            raise

    def executemany(self, *arguments: Any) -> ClosingCursor:
        """Run one statement for each of several rows of parameters."""
        try:
            return super().executemany(*arguments)
        except sqlite3.Error:
            self.close()
            raise


class ClosingConnection(sqlite3.Connection):
    """A connection whose cursors are closed when their statement fails."""

    def cursor(self, factory: Any = ClosingCursor) -> Any:
        """A new cursor."""
        return super().cursor(factory)


def close_failed_cursors() -> None:
    """Have every SQLite connection of this process close the cursors of statements that fail."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "do_connect", _connect_closing):
        event.listen(Engine, "do_connect", _connect_closing)


def _connect_closing(dialect: Any, _record: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
    if dialect.driver == "aiosqlite":
        keywords.setdefault("factory", ClosingConnection)


def create_app() -> Any:
    """Prefect's server as an ASGI application."""
    close_failed_cursors()
    from prefect.server.api.server import create_app as prefects

    return prefects()


if __name__ == "__main__":
    close_failed_cursors()
    from prefect.cli import app

    sys.argv[1:1] = ["server", "start"]
    app()
