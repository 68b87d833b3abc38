"""The terminal that commands print tables to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """A console as wide as the terminal."""
    from rich.console import Console

    # Tables are cut to the terminal; a file or a pipe has no width.
    return Console() if sys.stdout.isatty() else Console(width=132)
