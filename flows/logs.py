"""Where a command's log goes: to a file, so that the terminal shows what this program says and nothing else."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_file(path: Path) -> None:
    """Send the log of this process, libraries' warnings and failed threads to a file instead of the terminal.

    Call it once Prefect is imported: it sets up logging of its own then. What goes to Prefect's server still does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    loggers = [root, *(one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger))]
    for logger in loggers:
        silenced = [one for one in logger.handlers if getattr(one, "stream", None) in (sys.stderr, sys.stdout)]
        silenced += [one for one in logger.handlers if type(one).__name__ == "PrefectConsoleHandler"]
        for one in silenced:
            if one in logger.handlers:
                logger.removeHandler(one)
        if silenced and not logger.propagate:
            logger.addHandler(handler)
    root.addHandler(handler)
    logging.captureWarnings(True)
    threading.excepthook = _log_failed_thread


def _log_failed_thread(failure: threading.ExceptHookArgs) -> None:
    name = failure.thread.name if failure.thread else "?"
    error = failure.exc_value or failure.exc_type()
    logging.getLogger(__name__).error("Thread %s failed", name, exc_info=(type(error), error, failure.exc_traceback))
