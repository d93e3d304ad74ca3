"""A closed loop: so many clients, each one session after the other, without pauses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from contenders import Contender
from loads import Load, Session
from targets import Answer, Ask


async def run_load(contender: Contender, load: Load, concurrency: int) -> dict[str, float]:
    """Run a workload; return its figures by metric.

    TTFT is of requests that gave text; tokens and cached tokens are as the engines report them.
    """
    answers: list[Answer] = []
    sessions = iter(load.sessions)
    before = contender.num_finished()
    begun_s = time.monotonic()
    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(_client(contender.ask, sessions, answers))
    lasted_s = time.monotonic() - begun_s
    good = [answer for answer in answers if not answer.error]
    first_s = [answer.ttft_s for answer in good if answer.ttft_s is not None]
    prompt_tokens = sum(answer.prompt_tokens for answer in good)
    figures = {
        "requests_per_s": len(good) / lasted_s,
        "out_tok_s": sum(answer.output_tokens for answer in good) / lasted_s,
        "failed_requests": float(len(answers) - len(good)),
    }
    if prompt_tokens:
        figures["cached_token_share"] = sum(answer.cached_tokens for answer in good) / prompt_tokens
        figures["prompt_tokens"] = float(prompt_tokens)  # equal for both: they tokenize alike
    by_engine = [number - before[name] for name, number in contender.num_finished().items()]
    if any(by_engine):
        figures["busiest_engine_share"] = max(by_engine) / sum(by_engine)
    if first_s:
        figures["ttft_ms_p50"] = 1e3 * percentile(first_s, 50)
        figures["ttft_ms_p99"] = 1e3 * percentile(first_s, 99)
    return figures


async def _client(ask: Ask, sessions: Iterator[Session], answers: list[Answer]) -> None:
    for session in sessions:
        prompt = ""
        for turn in session.turns:
            prompt = f"{prompt} {turn}".strip()
            answer = Answer()
            answers.append(answer)
            await ask(prompt, session.output_tokens, answer)
            if answer.error:
                break
            prompt += answer.text


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
