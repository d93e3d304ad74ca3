"""What goes wrong, when, and for how long: a pure function of a seed.

Trouble comes in episodes. In an episode at most two of the three engines are in trouble, so that one can always serve, and
at most one of these in a way that a request could be accused of: who loses two engines at the same place by such is given
up on purpose (see octavo_router.losses). The driver lets the fleet heal and the requests that an episode met end before it
begins the next, so that nobody loses more engines than the default limit allows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    """Kinds of trouble. Those of engines come first."""

    KILL = "SIGKILL to an engine, later a new process"
    HANG = "SIGSTOP to an engine, later SIGCONT: a zombie"
    HANG_CORE = "SIGSTOP to an engine's core alone, later SIGCONT"
    DRAIN = "SIGTERM to an engine, later a new process"
    CUT = "an engine's connections reset and refused"
    HALF_OPEN = "an engine's connections open, but nothing passes"
    HALF_OPEN_DOWN = "what an engine says does not pass, what it is told does"
    DELAY = "an engine's network is slow"
    REDIS_KILL = "SIGKILL to Redis, later a new and empty one"
    REDIS_PAUSE = "SIGSTOP to Redis, later SIGCONT"
    REDIS_FLUSH = "FLUSHALL"


DEATHS = (Fault.KILL, Fault.HANG_CORE, Fault.CUT)
"""What a request may be accused of."""
BLAMELESS = (Fault.HANG, Fault.DRAIN, Fault.HALF_OPEN, Fault.HALF_OPEN_DOWN, Fault.DELAY)
ENGINE_FAULTS = (*DEATHS, *BLAMELESS)
REDIS_FAULTS = (Fault.REDIS_KILL, Fault.REDIS_PAUSE, Fault.REDIS_FLUSH)

# Some holds are shorter than it takes to notice (2 to 2.5 s): then nothing moves, or a zombie comes back in the middle.
_HOLDS_S = {
    Fault.KILL: (0.0, 1.0),
    Fault.DRAIN: (0.0, 0.5),
    Fault.HANG: (0.5, 4.0),
    Fault.HANG_CORE: (0.5, 4.0),
    Fault.CUT: (0.1, 2.0),
    Fault.HALF_OPEN: (0.5, 4.0),
    Fault.HALF_OPEN_DOWN: (0.5, 4.0),
    Fault.DELAY: (0.5, 2.0),
    Fault.REDIS_KILL: (0.1, 2.0),
    Fault.REDIS_PAUSE: (0.5, 2.5),
    Fault.REDIS_FLUSH: (0.0, 0.0),
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """One fault."""

    fault: Fault
    engine: int | None
    """Number of the engine, from 1; None for Redis."""
    after_s: float
    """From the start of the episode."""
    hold_s: float

    def __str__(self) -> str:
        whom = "Redis" if self.engine is None else f"engine-{self.engine}"
        return f"{self.fault.name} {whom} after {self.after_s:.2f} s for {self.hold_s:.2f} s"


Episode = tuple[Trouble, ...]


def episodes(seed: int, *, num_engines: int = 3) -> Iterator[Episode]:
    """Yield episodes without end: in rounds of five, each with every kind of fault once, in an order of the seed's own."""
    draw = random.Random(f"schedule {seed}")
    while True:
        deaths: list[Fault | None] = [*DEATHS, None, None]
        redis_faults: list[Fault | None] = [*REDIS_FAULTS, None, None]
        blameless = list(BLAMELESS)
        for faults in (deaths, redis_faults, blameless):
            draw.shuffle(faults)
        for death, fault, redis_fault in zip(deaths, blameless, redis_faults, strict=True):
            first, second = draw.sample(range(1, num_engines + 1), 2)
            planned = ((death, first), (fault, second), (redis_fault, None))
            yield tuple(_trouble(each, whom, draw) for each, whom in planned if each is not None)


def _trouble(fault: Fault, engine: int | None, draw: random.Random) -> Trouble:
    return Trouble(fault=fault, engine=engine, after_s=draw.uniform(0.0, 1.0), hold_s=draw.uniform(*_HOLDS_S[fault]))
