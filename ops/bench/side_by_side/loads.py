"""The workloads: texts drawn from a seed, so that every contender gets the same ones in the same order.

    shared_prefix:GROUPS:EACH:PREFIX:SUFFIX:OUTPUT   EACH requests for each of GROUPS prefixes, shuffled
    conversations:COUNT:TURNS:WORDS:OUTPUT           each turn sends all before it, WORDS more, and waits for its answer
    distinct:COUNT:WORDS:OUTPUT                      nothing shared: affinity must not cost anything

PREFIX, SUFFIX and WORDS are words, about as many tokens; OUTPUT is tokens, always as many as asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_WORDS: Final = [
    "river",
    "stone",
    "window",
    "garden",
    "paper",
    "letter",
    "morning",
    "winter",
    "silver",
    "copper",
    "table",
    "village",
    "teacher",
    "market",
    "engine",
    "signal",
    "forest",
    "island",
    "harbour",
    "bridge",
    "candle",
    "mirror",
    "pocket",
    "hammer",
    "ladder",
    "blanket",
    "basket",
    "kitchen",
    "doctor",
    "farmer",
    "sailor",
    "soldier",
    "music",
    "number",
    "circle",
    "answer",
    "reason",
    "season",
    "summer",
    "autumn",
    "yellow",
    "purple",
    "orange",
    "gentle",
    "narrow",
    "hollow",
    "sudden",
    "quiet",
]


class UnknownLoad(Exception):
    """No such workload. The message has the forms."""


@dataclass(frozen=True, slots=True)
class Session:
    """What one client sends, one request after the other.

    Attributes:
        turns: texts. A request's prompt is all turns up to its own, each but the last with its answer.
        output_tokens: of each answer.
    """

    turns: tuple[str, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """A named workload."""

    name: str
    sessions: tuple[Session, ...]

    @property
    def num_requests(self) -> int:
        """Requests in all."""
        return sum(len(session.turns) for session in self.sessions)


def parse_load(name: str, seed: int) -> Load:
    """Return the workload of a name.

    Raises:
        UnknownLoad: there is none of that name.
    """
    kind, *sizes = name.split(":")
    try:
        return Load(name, tuple(_KINDS[kind](random.Random(seed), *map(int, sizes))))  # noqa: S311  # test texts
    except (KeyError, ValueError, TypeError):
        raise UnknownLoad(f"no workload {name!r}; there are\n{__doc__}") from None


def _shared_prefix(rng: random.Random, groups: int, each: int, prefix: int, suffix: int, output: int) -> list[Session]:
    prefixes = [_text(rng, prefix) for _ in range(groups)]
    sessions = [Session((f"{text} {_text(rng, suffix)}",), output) for text in prefixes for _ in range(each)]
    rng.shuffle(sessions)
    return sessions


def _conversations(rng: random.Random, count: int, turns: int, words: int, output: int) -> list[Session]:
    return [Session(tuple(_text(rng, words) for _ in range(turns)), output) for _ in range(count)]


def _distinct(rng: random.Random, count: int, words: int, output: int) -> list[Session]:
    return [Session((_text(rng, words),), output) for _ in range(count)]


def _text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=num_words))


_KINDS: Final[dict[str, Callable[..., list[Session]]]] = {
    "shared_prefix": _shared_prefix,
    "conversations": _conversations,
    "distinct": _distinct,
}
