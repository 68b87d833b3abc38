"""Where a command's log goes: to a file, so that the terminal shows what this program says and nothing else."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import IO

from sparse_probing.credentials import hide_in_logs, without_secrets

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Send logs, warnings, failed threads and whatever libraries write to standard error to a file, not the terminal.

    Enter it once Prefect is imported: it sets up logging of its own then. What runs log to Prefect's server still goes
    there: handlers are changed, and no logger's level.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hide_in_logs()
    with path.open("a", encoding="utf-8", buffering=1) as file:
        stream = _WithoutSecrets(file)
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_NamingRuns(FORMAT))
        root = logging.getLogger()
        loggers = [
            root,
            *(one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger)),
        ]
        removed = [
            (logger, one)
            for logger in loggers
            for one in logger.handlers
            if getattr(one, "stream", None) in (sys.stderr, sys.stdout) or type(one).__name__ == "PrefectConsoleHandler"
        ]
        for logger, one in removed:
            logger.removeHandler(one)
        added = {root, *(logger for logger, _ in removed if not logger.propagate)}
        for logger in added:
            logger.addHandler(handler)
        hook, threading.excepthook = threading.excepthook, _log_failed_thread
        logging.captureWarnings(True)
        try:
            with redirect_stderr(stream):
                yield
        finally:
            logging.captureWarnings(False)
            threading.excepthook = hook
            for logger in added:
                logger.removeHandler(handler)
            # Prefect's console handlers stay away: what its threads still have to say belongs to no command.
            root.addHandler(logging.NullHandler())


class _NamingRuns(logging.Formatter):
    """A formatter that says which task or flow a line is of."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.formatMessage`."""
        run = getattr(record, "task_run_name", None) or getattr(record, "flow_run_name", None)
        if run:
            record.message = f"{run!r}: {record.message}"
        return super().formatMessage(record)


class _WithoutSecrets(io.TextIOBase):
    """A text file that takes credentials out of each text that is written to it."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """See `io.TextIOBase.write`."""
        self._file.write(without_secrets(text))
        return len(text)

    def flush(self) -> None:
        """See `io.TextIOBase.flush`."""
        self._file.flush()

    def fileno(self) -> int:
        """See `io.TextIOBase.fileno`; what is written there directly is written as it is."""
        return self._file.fileno()


def _log_failed_thread(failure: threading.ExceptHookArgs) -> None:
    name = failure.thread.name if failure.thread else "?"
    error = failure.exc_value or failure.exc_type()
    logging.getLogger(__name__).error("Thread %s failed", name, exc_info=(type(error), error, failure.exc_traceback))
