"""Workloads for routing: prompts of token ids with arrival times, from a seed.

Lengths are about an eighth of those that published benchmarks use, and so are the simulated pools: what matters to a
router is the ratio of prefixes, pools and work.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from sim.engine import PAGE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request. `follow_up` gives what the client sends next and how many seconds after the end of this one."""

    prompt: list[int]
    max_tokens: int
    group: int = 0
    follow_up: Callable[[list[int]], tuple[float, Job] | None] | None = None


Arrivals = list[tuple[float, Job]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Jobs by the time of their arrival in seconds, at most `num_jobs` of them with follow-ups."""

    name: str
    arrivals: Arrivals
    num_jobs: int


def suite(num_jobs: int, draw: int = 0) -> dict[str, Workload]:
    """Return the workloads that routing is judged by, each with about so many jobs, at rates that keep 8 engines busy.

    Args:
        num_jobs: requests of each.
        draw: others of the same kind for each number.
    """
    first = 100 * draw
    return {
        workload.name: workload
        for workload in (
            shared_prefix(seed=first + 1, num_jobs=num_jobs, per_s=80),
            prefix_repetition(seed=first + 2, num_prefixes=num_jobs // 3, per_s=55),
            multi_turn(seed=first + 3, num_sessions=num_jobs // 4, per_s=50),
            conversations(seed=first + 4, num_jobs=num_jobs, speed=18),
            sibling_bursts(seed=first + 5, num_waves=max(1, num_jobs // 64), wave_s=0.6),
            hot_prefix(seed=first + 6, num_jobs=num_jobs, per_s=90),
            no_sharing(seed=first + 7, num_jobs=num_jobs, per_s=60),
        )
    }


class _Words:
    """Random token ids. Each text is new."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self, num_tokens: int) -> list[int]:
        return self.random.choices(range(10, 32_000), k=num_tokens)

    def around(self, num_tokens: int) -> int:
        return round(num_tokens * self.random.uniform(0.75, 1.25))

    def poisson(self, per_s: float) -> Iterator[float]:
        at = 0.0
        while True:
            at += self.random.expovariate(per_s)
            yield at


def shared_prefix(
    *,
    seed: int = 1,
    num_jobs: int = 1200,
    per_s: float,
    num_groups: int = 83,
    prefix: int = 1000,
    question: int = 125,
    output: int = 32,
    skew: float = 0.0,
    name: str = "shared prefix",
) -> Workload:
    """Groups with a long prefix each and a question of its own in each request.

    Args:
        seed: of everything random.
        num_jobs: requests.
        per_s: mean arrivals in a second.
        num_groups: different prefixes.
        prefix: tokens of a prefix.
        question: mean tokens after it.
        output: mean output tokens.
        skew: group n is asked in proportion to 1 / n ** skew; 0: all alike.
        name: shown in tables.
    """
    words = _Words(seed)
    prefixes = [words.text(prefix) for _ in range(num_groups)]
    weights = [(number + 1) ** -skew for number in range(num_groups)]
    groups = words.random.choices(range(num_groups), weights, k=num_jobs)
    arrivals = [
        (
            at,
            Job(
                prompt=prefixes[group] + words.text(words.around(question)),
                max_tokens=words.around(output),
                group=group,
            ),
        )
        for at, group in zip(words.poisson(per_s), groups, strict=False)
    ]
    return Workload(name=name, arrivals=arrivals, num_jobs=num_jobs)


def hot_prefix(*, seed: int = 6, num_jobs: int = 1200, per_s: float) -> Workload:
    """The same with very unequal groups: the first is asked more than one time in four, the last hardly ever."""
    return shared_prefix(seed=seed, num_jobs=num_jobs, per_s=per_s, skew=1.2, name="hot prefix")


def prefix_repetition(*, seed: int = 2, num_prefixes: int = 400, each: int = 3, per_s: float) -> Workload:
    """Many prefixes of which each comes back a few times only, at any time."""
    words = _Words(seed)
    prefixes = [words.text(450) for _ in range(num_prefixes)]
    groups = list(range(num_prefixes)) * each
    words.random.shuffle(groups)
    arrivals = [
        (at, Job(prompt=prefixes[group] + words.text(words.around(450)), max_tokens=words.around(32), group=group))
        for at, group in zip(words.poisson(per_s), groups, strict=False)
    ]
    return Workload(name="prefix repetition", arrivals=arrivals, num_jobs=len(groups))


def multi_turn(
    *, seed: int = 3, num_sessions: int = 300, num_turns: int = 4, per_s: float, system: int = 256, think_s: float = 1.0
) -> Workload:
    """Sessions under one system prompt; each turn repeats the session so far, a while after the answer to the last."""
    words = _Words(seed)
    shared = words.text(system)
    # Drawn beforehand: the same for every policy, in whatever order the answers come.
    turns = [
        [
            (words.text(words.around(160)), words.around(40), words.random.expovariate(1 / think_s))
            for _ in range(num_turns)
        ]
        for _ in range(num_sessions)
    ]

    def turn(session: int, number: int, history: list[int]) -> Job:
        text, max_tokens, think_s = turns[session][number]
        prompt = history + text

        def follow_up(output: list[int]) -> tuple[float, Job] | None:
            return None if number + 1 == num_turns else (think_s, turn(session, number + 1, prompt + output))

        return Job(prompt=prompt, max_tokens=max_tokens, group=session, follow_up=follow_up)

    starts = zip(words.poisson(per_s), range(num_sessions), strict=False)
    arrivals = [(at, turn(session, 0, shared)) for at, session in starts]
    return Workload(name="multi-turn", arrivals=arrivals, num_jobs=num_sessions * num_turns)


def sibling_bursts(
    *, seed: int = 5, num_waves: int = 20, parents: int = 16, siblings: int = 4, wave_s: float
) -> Workload:
    """Waves of new parent prompts within 0.2 s, each asked by all its siblings within 20 ms."""
    words = _Words(seed)
    arrivals: Arrivals = []
    for wave in range(num_waves):
        for parent in range(parents):
            prefix = words.text(words.around(600))
            starts_at = wave * wave_s + words.random.uniform(0.0, 0.2)
            for _ in range(siblings):
                job = Job(prompt=prefix + words.text(40), max_tokens=words.around(32), group=wave * parents + parent)
                arrivals.append((starts_at + words.random.uniform(0.0, 0.02), job))
    arrivals.sort(key=lambda arrival: arrival[0])
    return Workload(name="sibling bursts", arrivals=arrivals, num_jobs=len(arrivals))


def no_sharing(*, seed: int = 7, num_jobs: int = 1200, per_s: float) -> Workload:
    """No two prompts begin alike; lengths differ by a factor of eight."""
    words = _Words(seed)
    arrivals = [
        (
            at,
            Job(
                prompt=words.text(words.random.choice((100, 200, 400, 800))), max_tokens=words.around(48), group=number
            ),
        )
        for number, at in zip(range(num_jobs), words.poisson(per_s), strict=False)
    ]
    return Workload(name="no sharing", arrivals=arrivals, num_jobs=num_jobs)


def conversations(*, seed: int = 4, num_jobs: int = 1200, speed: float = 1.0) -> Workload:
    """A stand-in for a recorded trace of a chat service: see `trace` for the real thing.

    Ten requests come every 3 s; all prompts share their first page; lengths are log-normal; two in five requests
    go on with an earlier conversation, more likely a recent one.
    """
    words = _Words(seed)
    lines: list[dict[str, object]] = []
    new_page = count(1)
    open_conversations: list[list[int]] = []
    for number in range(num_jobs):
        goes_on = open_conversations and words.random.random() < 0.4
        index = max(0, len(open_conversations) - 1 - int(words.random.expovariate(1 / 60))) if goes_on else 0
        pages = open_conversations.pop(index) if goes_on else [0]
        grown = max(1, round(words.random.lognormvariate(2.4, 0.9)))
        pages = pages + [next(new_page) for _ in range(grown)]
        open_conversations.append(pages)
        lines.append(
            {
                "timestamp": number // 10 * 3000,
                "input_length": len(pages) * 512,
                "output_length": words.around(340),
                "hash_ids": pages,
            }
        )
    return _replay(lines, speed=speed, name="conversations")


def trace(path: Path, *, num_jobs: int, speed: float = 1.0) -> Workload:
    """Replay a trace in Mooncake's form: JSON lines of timestamp (ms), input_length, output_length and hash_ids.

    A hash id stands for 512 tokens there and for one page here; outputs shrink likewise.
    """
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line, _ in zip(file, range(num_jobs), strict=False)]
    return _replay(lines, speed=speed, name="trace")


def _replay(lines: Iterable[dict[str, object]], *, speed: float, name: str) -> Workload:
    arrivals: Arrivals = []
    chance = random.Random(0)
    for number, line in enumerate(lines):
        pages, timestamp, output = line["hash_ids"], line["timestamp"], line["output_length"]
        assert isinstance(pages, list)
        assert isinstance(timestamp, int)
        assert isinstance(output, int)
        prompt = [10 + page for page in pages for _ in range(PAGE_SIZE)] + [1]
        # Recorded times are rounded to 3 s: as they stand, ten requests would come at the very same moment.
        at = (timestamp / 1000 + chance.uniform(0.0, 3.0)) / speed
        arrivals.append((at, Job(prompt=prompt, max_tokens=max(1, output // 8), group=number)))
    arrivals.sort(key=lambda arrival: arrival[0])
    return Workload(name=name, arrivals=arrivals, num_jobs=len(arrivals))
