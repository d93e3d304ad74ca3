"""Messages between the front process and the core process of one engine: msgpack, one frame per step each way.

Frames travel over a local socket pair as a 4-byte little-endian length and a msgpack body. Times are nanoseconds of the
machine's monotonic clock, which both processes share. Token ids travel as little-endian u32 bytes: a prompt of thousands
of tokens is one copy, not thousands of integers.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Submit(msgspec.Struct, frozen=True, tag="submit", array_like=True):
    """A validated request. Fields as in `sequence.Request`; `key` is unique in the front process."""

    key: int
    prompt: bytes
    arrival_ns: int
    deadline_ns: int | None
    page_hash_root: bytes
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    max_tokens: int
    min_tokens: int
    stop_token_ids: list[int]
    n: int
    priority: int
    committed: list[bytes]
    finished_choices: list[int]
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    expected_cached: int = 0


class Cancel(msgspec.Struct, frozen=True, tag="cancel", array_like=True):
    """Give a request up, or only the choices named."""

    key: int
    choices: tuple[int, ...] = ()


class Credit(msgspec.Struct, frozen=True, tag="credit", array_like=True):
    """Let each choice of a request produce at most this many output tokens in all."""

    key: int
    max_output_tokens: int


class Flush(msgspec.Struct, frozen=True, tag="flush", array_like=True):
    """Drop every cached page that no sequence holds."""


class HandOff(msgspec.Struct, frozen=True, tag="handoff", array_like=True):
    """End every request with HANDOFF, now: the drain's grace is over."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown", array_like=True):
    """Exit after this frame."""


Command = Submit | Cancel | Credit | Flush | HandOff | Shutdown


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    """First frame of the core: the model is loaded. Facts for `EngineInfo`."""

    model_name: str
    model_revision: str
    tokenizer_revision: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    page_size: int
    num_pages: int
    backend: str
    device: str
    dtype: str
    numerics: str
    max_step_tokens: int
    max_sequences: int
    load_s: float
    prefix_caching: bool = True


class Progress(msgspec.Struct, frozen=True, tag="progress", array_like=True):
    """What the core is doing before it is ready, for people who wait."""

    stage: str
    done: float


class StartedEvent(msgspec.Struct, frozen=True, array_like=True):
    """A request ran for the first time."""

    key: int
    cached_tokens: int
    at_ns: int


class ChunkEvent(msgspec.Struct, frozen=True, array_like=True):
    """A step computed prompt tokens of a request (or recomputed tokens after a preemption)."""

    key: int
    choice: int
    start: int
    num_tokens: int


class PreemptedEvent(msgspec.Struct, frozen=True, array_like=True):
    """A sequence lost its pages and waits again."""

    key: int
    choice: int
    at_ns: int


class EndEvent(msgspec.Struct, frozen=True, array_like=True):
    """A choice ended. Counts and times are the choice's own; `last` marks the request's last choice."""

    key: int
    choice: int
    reason: int
    last: bool
    stop_token_id: int | None
    output_tokens: int
    cached_tokens: int
    first_planned_ns: int | None
    first_token_ns: int | None
    last_token_ns: int | None
    num_prefill_steps: int
    num_preemptions: int
    num_recomputed_tokens: int
    peak_pages: int
    error: str


class LoadReport(msgspec.Struct, frozen=True, array_like=True):
    """Load of the core after a step, as in octavo.v1.Load. `num_taken` counts the submits it has taken since its start."""

    num_waiting: int
    waiting_tokens: int
    num_running: int
    pages_in_use: int
    pages_cached: int
    pages_free: int
    prefill_tokens_per_s: float
    decode_s_per_sequence: float
    num_taken: int = 0
    is_warming: bool = False


class StepFrame(msgspec.Struct, frozen=True, tag="step", array_like=True):
    """Results of one step, as columns: entry i of keys, choices, positions, token_ids and logprobs is one token.

    Also sent without tokens when requests ended, or pages changed, outside a step.
    """

    step_id: int
    started_ns: int
    ended_ns: int
    num_tokens: int
    keys: list[int]
    choices: list[int]
    positions: list[int]
    token_ids: list[int]
    logprobs: list[float]
    started: list[StartedEvent]
    chunks: list[ChunkEvent]
    preempted: list[PreemptedEvent]
    ends: list[EndEvent]
    pages_stored: list[int]
    pages_evicted: list[int]
    load: LoadReport


class Flushed(msgspec.Struct, frozen=True, tag="flushed", array_like=True):
    """Answers a Flush."""

    num_pages: int


MODEL_REFUSED: Final = "model_refused"
"""Reason of a Failed whose cause is the configuration: its message is for people, and a restart would not help."""


class Failed(msgspec.Struct, frozen=True, tag="failed", array_like=True):
    """Last frame of a core that cannot go on. `reason` is stable; the details are in the core's log."""

    reason: str
    message: str


Report = Ready | Progress | StepFrame | Flushed | Failed
