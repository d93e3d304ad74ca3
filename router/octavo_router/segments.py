"""Cuts text where a tokenizer itself cuts it first, so that the pieces can be encoded one by one, and cached.

A tokenizer of the `tokenizers` library looks for its added tokens before anything else: those that are not "normalized"
are found in the text as it stands, leftmost first and longest first, and what lies between two of them is normalized,
split and merged on its own. The ids of the whole are therefore those of the parts. A cut is made before a special token
only, and the token stays with the text after it: what follows a token may be encoded otherwise than what begins a text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from tokenizers import AddedToken

_NEVER = re.compile(r"(?!)")


class Cuts:
    """Where texts may be cut.

    Args:
        added: all added tokens of a tokenizer.
    """

    def __init__(self, added: Collection[AddedToken]) -> None:
        first_found = [token for token in added if not token.normalized and token.content]
        self._pattern = alternatives([token.content for token in first_found])
        self._cutting = frozenset(token.content for token in first_found if _is_firm(token))
        if any(token.single_word for token in first_found):
            # Whether such a token counts depends on the characters around it, which may lie beyond a cut.
            self._cutting = frozenset()

    def pieces(self, text: str) -> Iterator[str]:
        """Yield the pieces of a text, in order; none is empty."""
        start = 0
        if self._cutting:
            for found in self._pattern.finditer(text):
                if found.start() > start and found.group() in self._cutting:
                    yield text[start : found.start()]
                    start = found.start()
        if start < len(text):
            yield text[start:]


def alternatives(contents: Collection[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of these texts, the longest that begins at a place."""
    if not contents:
        return _NEVER
    return re.compile("|".join(re.escape(content) for content in sorted(contents, key=len, reverse=True)))


def _is_firm(token: AddedToken) -> bool:
    """Whether a token is special and takes nothing but itself out of a text, nor can a neighbour take of it."""
    ends_in_space = token.content[0].isspace() or token.content[-1].isspace()
    return token.special and not (token.lstrip or token.rstrip or token.single_word or ends_in_space)
