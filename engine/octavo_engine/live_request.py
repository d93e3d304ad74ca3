"""A request between its submit and its last end, as the front process sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from octavo.v1 import types_pb2

from octavo_engine import messages

MAX_EVENTS: Final = 64
"""Chunks and preemptions kept for a request's spans; counts go on."""


@dataclass(slots=True, kw_only=True, eq=False)
class LiveRequest:
    """What the front must remember to answer, count and trace a request. Times are monotonic nanoseconds.

    Attributes:
        command: what went to the core.
        request_id: the client's name for it.
        traceparent: W3C context of the router's span, may be empty.
        attempt: number of the router's attempt.
        open_choices: choices that have not ended.
        started: first run, None while it waits.
        num_prefill_tokens: prompt tokens computed, again after a preemption.
        chunks: (end of the step, position, tokens) of the first prefill chunks.
        preempted: times of the first preemptions.
        ends: ends of choices, in order of arrival.
        credit: most output tokens per choice that the router takes; None is unlimited.
    """

    command: messages.Submit
    request_id: str
    traceparent: str = ""
    attempt: int = 0
    open_choices: set[int]
    started: messages.StartedEvent | None = None
    num_prefill_tokens: int = 0
    chunks: list[tuple[int, int, int]] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    ends: list[messages.EndEvent] = field(default_factory=list)
    credit: int | None = None

    def note_chunk(self, ended_ns: int, chunk: messages.ChunkEvent) -> None:
        """Take note of prompt tokens computed."""
        self.num_prefill_tokens += chunk.num_tokens
        if len(self.chunks) < MAX_EVENTS:
            self.chunks.append((ended_ns, chunk.start, chunk.num_tokens))

    def note_preemption(self, at_ns: int) -> None:
        """Take note of a preemption."""
        if len(self.preempted) < MAX_EVENTS:
            self.preempted.append(at_ns)

    @property
    def num_prompt(self) -> int:
        """Prompt tokens."""
        return len(self.command.prompt) // 4

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache."""
        return self.started.cached_tokens if self.started else 0

    @property
    def output_tokens(self) -> int:
        """Output tokens of the choices that have ended, committed ones included."""
        return sum(end.output_tokens for end in self.ends)

    def fill_usage(self, usage: types_pb2.Usage) -> None:
        """Write the counts so far."""
        usage.prompt_tokens = self.num_prompt
        usage.cached_tokens = self.cached_tokens
        usage.output_tokens = self.output_tokens

    @property
    def first_planned_ns(self) -> int | None:
        """When the first step was planned that ran any of its tokens."""
        return min((end.first_planned_ns for end in self.ends if end.first_planned_ns is not None), default=None)

    @property
    def first_token_ns(self) -> int | None:
        """When its first output token was read."""
        return min((end.first_token_ns for end in self.ends if end.first_token_ns is not None), default=None)

    @property
    def last_token_ns(self) -> int | None:
        """When its last output token was read."""
        return max((end.last_token_ns for end in self.ends if end.last_token_ns is not None), default=None)

    @property
    def num_decode_steps(self) -> int:
        """Steps after the first token, of the longest choice."""
        committed = dict(enumerate(self.command.committed))
        generated = (end.output_tokens - len(committed.get(end.choice, b"")) // 4 for end in self.ends)
        return max(max(generated, default=1) - 1, 0)

    def timing(self) -> types_pb2.EngineTiming:
        """Return the times so far."""
        timing = types_pb2.EngineTiming()
        self.fill_timing(timing)
        return timing

    def fill_timing(self, timing: types_pb2.EngineTiming) -> None:
        """Write the times so far: queue to the first plan, prefill to the first token, decode to the last token."""
        planned_ns, first_ns, last_ns = self.first_planned_ns, self.first_token_ns, self.last_token_ns
        if planned_ns is not None:
            timing.queue_ns = max(0, planned_ns - self.command.arrival_ns)
            if first_ns is not None:
                timing.prefill_ns = max(0, first_ns - planned_ns)
        if first_ns is not None and last_ns is not None:
            timing.decode_ns = last_ns - first_ns
        timing.num_prefill_steps = sum(end.num_prefill_steps for end in self.ends)
        timing.num_preemptions = sum(end.num_preemptions for end in self.ends)
        timing.num_recomputed_tokens = sum(end.num_recomputed_tokens for end in self.ends)
        timing.peak_pages = max((end.peak_pages for end in self.ends), default=0)
