"""What happens to running streams, and to new requests, when an engine is killed or freezes.

The same prompts run undisturbed first: greedy output is then known, and the streams go where their prefix is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from contenders import Contender
from loads import parse_load
from targets import Answer, Ask

FAULTS: Final = ("sigkill", "sigstop")
_LEAST_PIECES: Final = 4
_PROBE_EVERY_S: Final = 0.5
_PROBE_TOKENS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """One experiment.

    Attributes:
        fault: one of FAULTS.
        num_streams: streams that run when it strikes.
        words: of each prompt.
        output_tokens: of each stream.
        limit_s: time after the fault at which a stream that still stands is hung.
        probe_limit_s: time in which a new request must have its whole answer.
    """

    fault: str
    num_streams: int
    words: int
    output_tokens: int
    limit_s: float
    probe_limit_s: float

    @property
    def name(self) -> str:
        """Name of the workload in results."""
        return f"{self.fault}:{self.num_streams}:{self.words}:{self.output_tokens}"


async def run_fault(contender: Contender, plan: FaultPlan, seed: int) -> dict[str, float]:
    """Run an experiment on a contender that is of no use afterwards; return its figures by metric."""
    load = parse_load(f"distinct:{plan.num_streams}:{plan.words}:{plan.output_tokens}", seed)
    prompts = [session.turns[0] for session in load.sessions]
    undisturbed = await _all(contender.ask, prompts, plan.output_tokens)
    answers = [Answer() for _ in prompts]
    async with asyncio.TaskGroup() as tasks:
        streams = [
            tasks.create_task(contender.ask(prompt, plan.output_tokens, answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        await asyncio.gather(*map(_begun, answers))
        victim, num_hit = await _strike(contender, plan.fault)
        struck_s = time.monotonic()
        probes: list[Answer] = []
        probing = tasks.create_task(_probe(contender.ask, plan, probes, struck_s))
        await asyncio.wait(streams, timeout=plan.limit_s)
        await probing
        ended_s = time.monotonic()
        for stream in streams:
            stream.cancel()
    if plan.fault == "sigstop":
        contender.stack.resume_engine(victim)  # or it could not end
    return (
        {"streams_hit": float(num_hit)}
        | _stream_figures(answers, undisturbed, ended_s)
        | _probe_figures(probes, struck_s)
    )


async def _strike(contender: Contender, fault: str) -> tuple[int, int]:
    """Hit the engine that has most streams; return it, and how many it had."""
    running = await contender.loads()
    victim = max(running, key=lambda index: running[index])
    if fault == "sigkill":
        await contender.stack.kill_engine(victim)
    else:
        contender.stack.pause_engine(victim)
    return victim, running[victim]


async def _all(ask: Ask, prompts: Sequence[str], output_tokens: int) -> list[str]:
    answers = [Answer() for _ in prompts]
    await asyncio.gather(*(ask(prompt, output_tokens, answer) for prompt, answer in zip(prompts, answers, strict=True)))
    if errors := [answer.error for answer in answers if answer.error]:
        raise RuntimeError(f"an undisturbed stream failed: {errors[0]}")
    return [answer.text for answer in answers]


async def _probe(ask: Ask, plan: FaultPlan, probes: list[Answer], struck_s: float) -> None:
    """Send a new request now and then for as long as the experiment lasts; each has a limit of its own."""
    async with asyncio.TaskGroup() as tasks:
        while time.monotonic() - struck_s < plan.limit_s:
            answer = Answer()
            probes.append(answer)
            tasks.create_task(_ask_within(ask, f"probe {len(probes)}", answer, plan.probe_limit_s))
            await asyncio.sleep(_PROBE_EVERY_S)


async def _ask_within(ask: Ask, prompt: str, answer: Answer, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await ask(prompt, _PROBE_TOKENS, answer)
    except TimeoutError:
        answer.error = "no answer in time"


def _stream_figures(answers: Sequence[Answer], undisturbed: Sequence[str], ended_s: float) -> dict[str, float]:
    pairs = list(zip(answers, undisturbed, strict=True))
    over = [(answer, text) for answer, text in pairs if answer.is_over and not answer.error]
    return {
        "streams_intact": float(sum(answer.text == text for answer, text in over)),
        "streams_changed": float(sum(answer.text != text for answer, text in over)),
        "streams_failed": float(sum(bool(answer.is_over and answer.error) for answer in answers)),
        "streams_hung": float(sum(not answer.is_over for answer in answers)),
        "streams_moved": float(sum(answer.moves > 0 for answer in answers)),
        "longest_gap_s": max(answer.longest_gap_s(ended_s) for answer in answers),
    }


def _probe_figures(probes: Sequence[Answer], struck_s: float) -> dict[str, float]:
    failed = [probe for probe in probes if probe.error]
    return {
        "new_requests": float(len(probes)),
        "new_requests_failed": float(len(failed)),
        # From the fault until the last new request was sent that failed; 0 if none did.
        "new_requests_fail_for_s": max((probe.sent_s - struck_s for probe in failed), default=0.0),
    }


async def _begun(answer: Answer) -> None:
    while len(answer.piece_s) < _LEAST_PIECES and not answer.is_over:
        answer.changed.clear()
        await answer.changed.wait()
