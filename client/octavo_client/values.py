"""What goes into the SDK and comes out of it: plain frozen values, none of them tied to gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Who speaks in a chat."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Priority(StrEnum):
    """Class of service."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class FinishReason(StrEnum):
    """Why a choice ended."""

    UNKNOWN = "unknown"  # sent by a newer router
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"
    HANDOFF = "handoff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when to stop. None leaves the choice to the router."""

    temperature: float | None = None
    """Randomness; 0 is greedy. Router's default: 1."""
    top_k: int = 0
    """Keep only the k most likely tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the smallest set of tokens whose probability reaches this. Router's default: 1."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one."""
    frequency_penalty: float = 0.0
    """Make a token less likely each time it comes in the output; -2 to 2."""
    presence_penalty: float = 0.0
    """Make tokens that came in the output less likely; -2 to 2."""
    repetition_penalty: float | None = None
    """Make tokens of the prompt and the output less likely if above 1, more if below. Router's default: 1."""
    seed: int | None = None
    """The same seed gives the same tokens. Drawn by the router if None."""
    max_tokens: int = 0
    """Most output tokens; 0: as many as the model's context leaves."""
    min_tokens: int = 0
    """No stop token ends the output before this many."""
    stop: tuple[str, ...] = ()
    """Strings that end the output; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the output besides the model's own."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence ids."""
    n: int = 1
    """Independent choices made from one prefill."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The request was admitted and an engine chosen. First event of every generation."""

    request_id: str
    trace_id: str
    """32 hex digits; empty if the request is not traced."""
    engine_id: str
    prompt_tokens: int
    matched_pages: int
    """Full prompt pages that the router believes the engine holds."""
    reason: str
    """Why this engine, in one line."""
    seed: int = 0
    """The seed in use: with it the same request gives the same tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """New output of one choice."""

    index: int
    text: str
    """May be empty while a character or a stop string is incomplete."""
    position: int
    """Output position of the first token."""
    num_tokens: int
    token_ids: tuple[int, ...]
    """Empty unless asked for."""
    logprobs: tuple[float, ...]
    """Empty unless asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request, all its choices together."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose keys and values came from the prefix cache."""
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where an engine's share of the time went."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    num_prefill_steps: int = 0
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0
    peak_pages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of one choice; the last one of a stream has usage and timing of the whole request."""

    index: int
    reason: FinishReason
    stopped_by: str
    """Stop string or decimal token id that ended it, if one did."""
    usage: Usage
    timing: Timing
    engine_id: str
    """Engine that finished it."""
    num_moves: int
    """Times the request was moved to another engine."""


Event = Accepted | Chunk | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One whole output."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    stopped_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A generation read to its end. Durations are seconds on the client's clock, from the call."""

    accepted: Accepted
    choices: tuple[Choice, ...]
    usage: Usage
    timing: Timing
    engine_id: str
    num_moves: int
    ttft_s: float | None
    """None if no token came."""
    duration_s: float

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as the fleet serves it."""

    name: str
    revision: str
    tokenizer_revision: str
    max_model_len: int
    vocab_size: int
    page_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Terms of the routing cost of one engine: cost = prefill + pool + decode, in seconds.

    `recent_s` is the work that it was sent in the last minutes; it decides among engines that cost the same.
    """

    engine_id: str
    matched_pages: int
    waiting_tokens: int
    uncached_tokens: int
    prefill_tokens_per_s: float
    pool_usage: float
    num_running: int
    prefill_s: float
    pool_s: float
    decode_s: float
    cost_s: float
    recent_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where a prompt would go now, and why: engines from best to worst."""

    prompt_tokens: int
    prompt_pages: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine as one router sees it."""

    engine_id: str
    address: str
    state: str
    """"serving", "draining", "suspect" or "unreachable"."""
    model: str
    backend: str
    device: str
    dtype: str
    numerics: str
    num_running: int
    num_waiting: int
    num_streams: int
    """Requests of this router there."""
    num_pages: int
    pages_in_use: int
    pages_cached: int
    num_resident_pages: int
    """Page hashes that the router's replica holds for it."""
    age_s: float
    """Age of its newest message."""
    is_warming: bool
    """While idle, it still prepares steps of usual sizes."""
