"""Names of hook points: the field's customary ones (``mlp.hook_post``, ``hook_resid_pre``, …) and module paths.

Names only, so that a spec can be checked without torch; which module a name means in which architecture is in `hooks`.
"""

from __future__ import annotations

import re

from sparse_probing.errors import InputError
from sparse_probing.mistakes import choices

HOOK_NAMES = ("mlp.hook_post", "mlp.hook_pre", "hook_mlp_out", "hook_attn_out", "hook_resid_pre", "hook_resid_post")
SYNONYMS = {
    "post": "mlp.hook_post",
    "pre": "mlp.hook_pre",
    "mlp.post": "mlp.hook_post",
    "mlp.pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "mlp_pre": "mlp.hook_pre",
    "hook_post": "mlp.hook_post",
    "hook_pre": "mlp.hook_pre",
    "mlp_out": "hook_mlp_out",
    "mlp.hook_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attn.hook_out": "hook_attn_out",
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
}


def canonical_hook(name: str) -> str:
    """The one name of a hook point; an explicit module path (with ``{layer}``) stays as it is.

    Accepts customary synonyms and full names such as ``blocks.3.mlp.hook_post`` (the layer in it is ignored).

    Raises
    ------
    InputError
        If the name is neither known nor a module path.
    """
    text = re.sub(r"^blocks\.(\d+|\{layer\})\.", "", name.strip()) if "hook" in name else name.strip()
    text = SYNONYMS.get(text, text)
    if text in HOOK_NAMES or is_module_path(text):
        return text
    raise InputError(
        f"Hook {name!r} is unknown; {choices(name, HOOK_NAMES, also=SYNONYMS)}.",
        remedy="Use one of them, or a module path such as 'layers.{layer}.mlp.down_proj.input' (or '.output').",
    )


def is_module_path(name: str) -> bool:
    """Whether a hook is named by a module's path with the layer left open, and one side of it."""
    return "{layer}" in name and name.rsplit(".", 1)[-1] in ("input", "output")
