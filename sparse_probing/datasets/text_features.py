"""text_features: eleven properties of a token's own characters.

Rules see the token as it stands in a sentence, leading space and all. A token that is a mere piece of a character
(byte-level tokenizers make them) is known not to be ASCII, and nothing else is said of it.
"""

from __future__ import annotations

from sparse_probing.datasets.token_features import TokenFeatureCollection, TokenOptions, TokenRule
from sparse_probing.datasets.tokens import REPLACEMENT


def contains_digit(token: str) -> bool:
    """Some character is a digit, of any script."""
    return any(char.isdigit() for char in token)


def all_digits(token: str) -> bool:
    """Nothing but digits, of any script; surrounding whitespace does not count."""
    return token.strip().isdigit()


def contains_capital(token: str) -> bool:
    """Some character is an upper-case letter."""
    return any(char.isupper() for char in token)


def leading_capital(token: str) -> bool:
    """The first character that is not whitespace is an upper-case letter."""
    return token.strip()[:1].isupper()


def all_capitals(token: str) -> bool:
    """Nothing but upper-case letters, one or more; surrounding whitespace does not count."""
    letters = token.strip()
    return letters != "" and all(char.isupper() for char in letters)


def contains_whitespace(token: str) -> bool:
    """Some character is whitespace."""
    return any(char.isspace() for char in token)


def has_leading_space(token: str) -> bool:
    """Starts with a space (not a tab, not a line end)."""
    return token.startswith(" ")


def no_leading_space_and_loweralpha(token: str) -> bool:
    """Nothing but lower-case letters, no space before them: mostly the inside or end of a word."""
    return token.isalpha() and token.islower()


def contains_all_whitespace(token: str) -> bool:
    """Nothing but whitespace."""
    return token.isspace()


def is_not_alphanumeric(token: str) -> bool:
    """No character is a letter or a digit: punctuation, symbols, whitespace."""
    return not any(char.isalnum() for char in token)


def is_not_ascii(token: str) -> bool:
    """Some character lies outside ASCII."""
    return not token.isascii()


RULES = (
    contains_digit,
    all_digits,
    contains_capital,
    leading_capital,
    all_capitals,
    contains_whitespace,
    has_leading_space,
    no_leading_space_and_loweralpha,
    contains_all_whitespace,
    is_not_alphanumeric,
    is_not_ascii,
)


def _of_whole_characters(rule: TokenRule) -> TokenRule:
    def answer(token: str) -> bool | None:
        return None if not token or REPLACEMENT in token else rule(token)

    return answer


class TextFeatures(TokenFeatureCollection[TokenOptions]):
    """Properties of a token's characters."""

    name = "text_features"
    summary = "Eleven properties of a token's characters: digits, capitals, whitespace, script"
    options_model = TokenOptions
    group_unit = "documents"

    def rules(self) -> dict[str, TokenRule]:
        """See `TokenFeatureCollection.rules`."""
        rules: dict[str, TokenRule] = {rule.__name__: _of_whole_characters(rule) for rule in RULES}
        rules[is_not_ascii.__name__] = is_not_ascii
        return rules
