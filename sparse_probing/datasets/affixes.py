"""has_prefix and has_suffix: English affixes in a single token's spelling.

Spelling alone decides: `unit` counts for `un`. A prefix stands at the start of a word (after a space) and a suffix at
its end (no letter follows); in both cases two letters or more must remain. Alternatives are grouped into one feature.
"""

from __future__ import annotations

from sparse_probing.datasets.token_features import TokenFeatureCollection, TokenOptions, TokenRule

PREFIXES = {
    "anti": ("anti",),
    "auto": ("auto",),
    "bi": ("bi",),
    "co": ("co",),
    "counter": ("counter",),
    "de": ("de",),
    "dis": ("dis",),
    "en_em": ("en", "em"),
    "ex": ("ex",),
    "extra": ("extra",),
    "fore": ("fore",),
    "hyper": ("hyper",),
    "in_im_il_ir": ("in", "im", "il", "ir"),
    "inter": ("inter",),
    "macro": ("macro",),
    "mal": ("mal",),
    "micro": ("micro",),
    "mid": ("mid",),
    "mini": ("mini",),
    "mis": ("mis",),
    "mono": ("mono",),
    "multi": ("multi",),
    "non": ("non",),
    "out": ("out",),
    "over": ("over",),
    "post": ("post",),
    "pre": ("pre",),
    "pro": ("pro",),
    "re": ("re",),
    "semi": ("semi",),
    "sub": ("sub",),
    "super": ("super",),
    "trans": ("trans",),
    "ultra": ("ultra",),
    "un": ("un",),
    "under": ("under",),
    "up": ("up",),
}
SUFFIXES = {
    "able_ible": ("able", "ible"),
    "al_ial": ("al",),
    "ance_ence": ("ance", "ence"),
    "ant_ent": ("ant", "ent"),
    "ed": ("ed",),
    "en": ("en",),
    "er_or": ("er", "or"),
    "est": ("est",),
    "ful": ("ful",),
    "ic": ("ic",),
    "ing": ("ing",),
    "ion": ("ion",),
    "ise_ize": ("ise", "ize"),
    "ish": ("ish",),
    "ism": ("ism",),
    "ist": ("ist",),
    "ity": ("ity",),
    "ive": ("ive",),
    "less": ("less",),
    "ly": ("ly",),
    "ment": ("ment",),
    "ness": ("ness",),
    "ous": ("ous",),
    "s_es": ("s",),
}
LETTERS_LEFT = 2


def has_prefix(token: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a token starts a word, and the word with one of the prefixes."""
    word = token[1:].casefold()
    return token.startswith(" ") and word.isalpha() and any(_longer(word, prefix, True) for prefix in prefixes)


def has_suffix(token: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a token's letters end with one of the suffixes; that the word ends there is seen from the next token."""
    word = token.removeprefix(" ").casefold()
    return word.isalpha() and any(_longer(word, suffix, False) for suffix in suffixes)


def _longer(word: str, affix: str, at_start: bool) -> bool:
    fits = word.startswith(affix) if at_start else word.endswith(affix)
    return fits and len(word) >= len(affix) + LETTERS_LEFT


class Prefixes(TokenFeatureCollection[TokenOptions]):
    """English prefixes."""

    name = "has_prefix"
    summary = "English prefixes at the start of a word, by spelling"
    options_model = TokenOptions

    def rules(self) -> dict[str, TokenRule]:
        """See `TokenFeatureCollection.rules`."""
        return {
            f"prefix_{name}": lambda token, forms=forms: has_prefix(token, forms)  # type: ignore[misc]
            for name, forms in PREFIXES.items()
        }


class Suffixes(TokenFeatureCollection[TokenOptions]):
    """English suffixes."""

    name = "has_suffix"
    summary = "English suffixes at the end of a word, by spelling"
    options_model = TokenOptions
    ends_word = True

    def rules(self) -> dict[str, TokenRule]:
        """See `TokenFeatureCollection.rules`."""
        return {
            f"suffix_{name}": lambda token, forms=forms: has_suffix(token, forms)  # type: ignore[misc]
            for name, forms in SUFFIXES.items()
        }
