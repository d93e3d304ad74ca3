"""What clients were given, event by event, and an offline checker of it.

A run is recorded in full and judged afterwards against the oracle: an undisturbed run of the same requests. How tokens were
packed into messages may differ; each token, its place, its log-probability, the text and the end may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from octavo.v1 import engine_pb2, inference_pb2, types_pb2


@dataclass(frozen=True, slots=True)
class Piece:
    """New output of one choice. `position` is that of its first token; `text` may be held back for later pieces."""

    choice: int
    position: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The end of one choice."""

    choice: int
    reason: int
    stopped_by: str
    prompt_tokens: int
    output_tokens: int
    """Of all choices so far: complete in the last end."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The stream ended with a status."""

    code: str
    reason: str


Event = Piece | End | Failure


@dataclass(slots=True)
class StreamRecord:
    """One stream: the request as the test calls it, its choices, and all that came, in order."""

    request: str
    num_choices: int = 1
    events: list[Event] = field(default_factory=list)
    engine_id: str = ""
    """Where it went first."""
    num_moves: int = 0
    longest_gap_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Output tokens so far, of all choices."""
        return sum(len(event.token_ids) for event in self.events if isinstance(event, Piece))

    def add(self, response: inference_pb2.GenerateResponse) -> None:
        """Take a message of the stream."""
        if response.HasField("accepted"):
            self.engine_id = response.accepted.engine_id
        elif response.HasField("chunk"):
            chunk = response.chunk
            self.events.append(
                Piece(chunk.index, chunk.position, tuple(chunk.token_ids), tuple(chunk.logprobs), chunk.text)
            )
        elif response.HasField("finished"):
            end = response.finished
            self.num_moves = max(self.num_moves, end.num_moves)
            usage = end.usage
            self.events.append(End(end.index, end.reason, end.stopped_by, usage.prompt_tokens, usage.output_tokens))


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that a client should not have seen. `position` is an output position, if there is one to name."""

    request: str
    what: str
    choice: int | None = None
    position: int | None = None

    def __str__(self) -> str:
        place = "" if self.choice is None else f" choice {self.choice}"
        place += "" if self.position is None else f" position {self.position}"
        return f"{self.request}{place}: {self.what}"


def check_stream(record: StreamRecord, oracle: StreamRecord) -> list[Violation]:
    """Return all that is wrong with a stream: exactly once, in order, equal to the oracle, whole."""
    failures = [event for event in record.events if isinstance(event, Failure)]
    found = [Violation(record.request, f"failed with {each.code} ({each.reason})") for each in failures]
    for choice in range(record.num_choices):
        events = [event for event in record.events if not isinstance(event, Failure) and event.choice == choice]
        expected = [event for event in oracle.events if not isinstance(event, Failure) and event.choice == choice]
        found += _Choice(record.request, choice).check(events, expected, is_whole=not failures)
    strangers = {event.choice for event in record.events if not isinstance(event, Failure)}
    found += [
        Violation(record.request, "nobody asked for this choice", stranger)
        for stranger in sorted(strangers.difference(range(record.num_choices)))
    ]
    if not failures and not found:
        found += _usage(record, oracle)
    return found


def check_pages(engine_id: str, load: engine_pb2.Load, *, num_pages: int) -> list[Violation]:
    """Return what is wrong with the pages of an engine that should be idle: all accounted for, none in use."""
    found = []
    total = load.pages_free + load.pages_cached + load.pages_in_use
    if total != num_pages:
        parts = f"{load.pages_free} free + {load.pages_cached} cached + {load.pages_in_use} in use"
        found.append(Violation(engine_id, f"{parts} = {total} pages of {num_pages}"))
    if load.pages_in_use or load.num_running or load.num_waiting:
        what = f"{load.pages_in_use} pages, {load.num_running} running and {load.num_waiting} waiting when all is over"
        found.append(Violation(engine_id, what))
    return found


class _Choice:
    """Checks one choice of one stream."""

    def __init__(self, request: str, choice: int) -> None:
        self._request = request
        self._choice = choice

    def check(self, events: list[Piece | End], expected: list[Piece | End], *, is_whole: bool) -> list[Violation]:
        """Return what is wrong. A stream that is not whole ended with a status: what came before it must still be right."""
        found = [*self._order(events), *self._tokens(list(_tokens(events)), list(_tokens(expected)), is_whole=is_whole)]
        ends = [event for event in events if isinstance(event, End)]
        if is_whole and len(ends) != 1:
            found.append(self._violation(f"ended {len(ends)} times"))
        elif is_whole:
            found += self._end(ends[0], next(event for event in expected if isinstance(event, End)))
        text, whole_text = _text(events), _text(expected)
        if text != whole_text if is_whole else not whole_text.startswith(text):
            found.append(self._violation(f"text {text!r} instead of {whole_text!r}"))
        return found

    def _order(self, events: list[Piece | End]) -> Iterator[Violation]:
        due = 0
        is_over = False
        for event in events:
            if is_over:
                yield self._violation("goes on after its end", due)
            if isinstance(event, End):
                is_over = True
                continue
            if len(event.logprobs) != len(event.token_ids):
                what = f"{len(event.token_ids)} tokens with {len(event.logprobs)} log-probabilities"
                yield self._violation(what, event.position)
            if event.position < due:
                yield self._violation("comes again", event.position)
            elif event.position > due:
                yield self._violation(f"is missing, up to {event.position - 1}", due)
            due = max(due, event.position + len(event.token_ids))

    def _tokens(
        self, tokens: list[tuple[int, int, float]], expected: list[tuple[int, int, float]], *, is_whole: bool
    ) -> Iterator[Violation]:
        oracle = {position: (token_id, logprob) for position, token_id, logprob in expected}
        for position, token_id, logprob in tokens:
            if position not in oracle:
                yield self._violation(f"token {token_id} beyond the end at {len(oracle)}", position)
                continue
            right_id, right_logprob = oracle[position]
            if token_id != right_id:
                yield self._violation(f"token {token_id} instead of {right_id}", position)
            elif logprob != right_logprob:
                yield self._violation(f"log-probability {logprob!r} instead of {right_logprob!r}", position)
        if is_whole and len(tokens) < len(oracle):
            yield self._violation(f"{len(tokens)} tokens instead of {len(oracle)}")

    def _end(self, end: End, right: End) -> Iterator[Violation]:
        if (end.reason, end.stopped_by) != (right.reason, right.stopped_by):
            yield self._violation(f"ended by {_named(end)} instead of {_named(right)}")

    def _violation(self, what: str, position: int | None = None) -> Violation:
        return Violation(self._request, what, self._choice, position)


def _usage(record: StreamRecord, oracle: StreamRecord) -> list[Violation]:
    """Compare the last end, whose counts are complete."""
    last, right = (
        next(event for event in reversed(events) if isinstance(event, End)) for events in (record.events, oracle.events)
    )
    usage, right_usage = ((end.prompt_tokens, end.output_tokens) for end in (last, right))
    if usage == right_usage:
        return []
    return [Violation(record.request, f"usage (prompt, output) {usage} instead of {right_usage}")]


def _tokens(events: Iterable[Event]) -> Iterator[tuple[int, int, float]]:
    for event in events:
        if isinstance(event, Piece):
            for offset, (token_id, logprob) in enumerate(zip(event.token_ids, event.logprobs, strict=False)):
                yield event.position + offset, token_id, logprob


def _text(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def _named(end: End) -> str:
    return f"{types_pb2.FinishReason.Name(end.reason)} {end.stopped_by!r}"  # type: ignore[arg-type]
