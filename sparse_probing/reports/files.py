"""Text files that are either the old one or the new one, whole, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def replace_text(target: Path, text: str) -> None:
    """Write a file under a temporary name and rename it over whatever was there; raises OSError if that cannot be done."""
    temporary = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
