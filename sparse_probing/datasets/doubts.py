"""What to tell of a finished dataset: text that it lacks, tokens that its tokenizer does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_probing.datasets.sources import NO_LABEL, NO_TEXT, Skipped

# Above this share of unknown tokens the text is likely of another language than the tokenizer's.
MAX_UNKNOWN_FRACTION = 0.5


def doubts(model: str, collection: str, facts: Mapping[str, Any]) -> list[str]:
    """Lines about what a dataset lacks of the user's text, and about tokens that the tokenizer does not know.

    Parameters
    ----------
    model, collection:
        Names, for the text of the lines.
    facts:
        Of the dataset's manifest.
    """
    lines = []
    for entry in facts.get("skipped", ()):
        total = Skipped(**entry)
        warning = "warning: " if total.reason in (NO_TEXT, NO_LABEL) else ""
        lines.append(f"Build {collection}: {warning}skipped {total}")
    share = facts["unknown_token_fraction"]
    if share > MAX_UNKNOWN_FRACTION:
        lines.append(
            f"Build {collection}: warning: {100 * share:.0f} % of its tokens are unknown to the tokenizer of {model}: check "
            "that it is that model's own, and that the text is of its language."
        )
    return lines
