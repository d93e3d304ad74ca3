"""Carries requests from readers to the core, and each step's results from the core back to the readers.

A reader is one end of a stream: a router's Link, or a direct Generate call. It has a number; the key of a request is that
number and the reader's own stream id, see `step_split`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from octavo.errors import InvalidRequest, Overloaded, Unavailable
from octavo.v1 import engine_pb2

from octavo_engine import messages
from octavo_engine.clock import Clock
from octavo_engine.ends import bare_ends, frame_of_ends
from octavo_engine.live_request import LiveRequest
from octavo_engine.load import LoadBoard
from octavo_engine.sequence import FinishReason
from octavo_engine.step_split import STREAM_MASK, StepSplit, key_of, reader_of
from octavo_engine.validation import Validator

_LEAST_RETRY_S, _MOST_RETRY_S = 0.1, 30.0


class Reader(Protocol):
    """One end of a stream."""

    number: int

    def deliver(self, response: engine_pb2.LinkResponse) -> None:
        """Take a message, at once and without waiting."""
        ...


class Core(Protocol):
    """Where commands go."""

    def send(self, command: messages.Command) -> None:
        """Queue a command for the core."""
        ...

    async def drained(self) -> None:
        """Wait until the core has taken most of what was queued."""
        ...


class Switchboard:
    """The live requests of an engine. One event loop uses it.

    Args:
        clock: maps step times for routers.
        max_waiting: requests that may wait for their first run.
        max_waiting_tokens: their prompt tokens.
        on_step: called with every step frame.
        on_finish: called with every request whose last choice ended, and the monotonic time of that.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        max_waiting: int,
        max_waiting_tokens: int,
        on_step: Sequence[Callable[[messages.StepFrame], None]] = (),
        on_finish: Sequence[Callable[[LiveRequest, int], None]] = (),
    ) -> None:
        self.load = LoadBoard()
        self.idle = asyncio.Event()
        self.idle.set()
        self.last_frame_ns = 0
        self._clock = clock
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._on_step = tuple(on_step)
        self._on_finish = tuple(on_finish)
        self._numbers = itertools.count(1)
        self._readers: dict[int, Reader] = {}
        self._live: dict[int, LiveRequest] = {}
        self._waiting: dict[int, int] = {}
        self._waiting_tokens = 0
        self._core: Core | None = None
        self._validator: Validator | None = None
        self._is_refusing = False
        self._closed = Unavailable("model_loading", "the engine is loading its model; try again", retry_after_s=1.0)

    def __len__(self) -> int:
        return len(self._live)

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The readers plugged in."""
        return tuple(self._readers.values())

    @property
    def is_open(self) -> bool:
        """Whether there was a core to send requests to, although none may be taken any more."""
        return self._core is not None

    def open(self, core: Core, validator: Validator) -> None:
        """Start taking requests, unless they are refused already: an engine may be told to drain while it loads."""
        self._core = core
        if not self._is_refusing:
            self._validator = validator

    def refuse(self, why: Unavailable) -> None:
        """Take nothing new from now on."""
        self._is_refusing = True
        self._closed = why
        self._validator = None

    @contextmanager
    def plugged(self, reader: Reader) -> Iterator[None]:
        """Give a reader its number while it lasts; when it goes, its requests are cancelled."""
        reader.number = next(self._numbers)
        self._readers[reader.number] = reader
        try:
            yield
        finally:
            del self._readers[reader.number]
            for key in [key for key in self._live if reader_of(key) == reader.number]:
                self._send(messages.Cancel(key))

    # --- towards the core ---

    def submit(self, reader: Reader, submit: engine_pb2.Submit) -> int:
        """Check a request and send it to the core; return the number of choices that will end.

        Raises:
            InvalidRequest: a field breaks its limit.
            Overloaded: too much waits already.
            Unavailable: the engine takes nothing now.
        """
        if self._validator is None:
            raise self._closed
        key = key_of(reader.number, submit.stream_id)
        if key in self._live:
            raise InvalidRequest("stream_id_in_use", f"stream_id {submit.stream_id} is in use", field="stream_id")
        num_prompt = len(submit.prompt_token_ids)
        self._check_room(num_prompt)
        command = self._validator.command(submit, key=key, arrival_ns=time.monotonic_ns())
        self._live[key] = LiveRequest(
            command=command,
            request_id=submit.request_id,
            traceparent=submit.traceparent,
            attempt=submit.attempt,
            open_choices=set(range(command.n)).difference(command.finished_choices),
        )
        self._waiting[key] = num_prompt
        self._waiting_tokens += num_prompt
        if self.idle.is_set():
            self.idle.clear()
            self.last_frame_ns = time.monotonic_ns()  # the core owes frames from now on
        num_committed = sum(len(choice.token_ids) for choice in submit.committed)
        self.load.sent(max(1, num_prompt + num_committed - submit.expected_cached_tokens))
        self._send(command)
        return len(self._live[key].open_choices)

    def cancel(self, reader: Reader, stream_id: int, choices: Collection[int] = ()) -> None:
        """Give a request up, or only some of its choices; the ends come from the core. What is unknown is ignored."""
        key = key_of(reader.number, stream_id)
        request = self._live.get(key)
        if request is None:
            return
        open_choices = request.open_choices.intersection(choices)
        if open_choices or not choices:
            self._send(messages.Cancel(key, tuple(sorted(open_choices))))

    def credit(self, reader: Reader, stream_id: int, max_output_tokens: int) -> None:
        """Let a request run on. Unknown ids, and credits below the last one, are ignored."""
        key = key_of(reader.number, stream_id)
        request = self._live.get(key)
        if request is not None and (request.credit is None or max_output_tokens > request.credit):
            request.credit = max_output_tokens
            self._send(messages.Credit(key, max_output_tokens))

    def flush(self) -> None:
        """Drop the cached pages; the core answers with Flushed."""
        self._send(messages.Flush())

    def hand_off(self) -> int:
        """End every request with HANDOFF; return how many there are."""
        self._send(messages.HandOff())
        return len(self._live)

    async def drained(self) -> None:
        """Wait until the core has taken most of what was sent: what holds a router back that sends too fast."""
        if self._core is not None:
            await self._core.drained()

    def _send(self, command: messages.Command) -> None:
        if self._core is not None:
            self._core.send(command)

    def _check_room(self, num_tokens: int) -> None:
        if len(self._waiting) < self._max_waiting and (
            not self._waiting or self._waiting_tokens + num_tokens <= self._max_waiting_tokens
        ):
            return
        rate = self.load.report.prefill_tokens_per_s
        retry_s = self._waiting_tokens / rate if rate > 0 else 1.0
        raise Overloaded(
            "too_many_waiting",
            f"{len(self._waiting)} requests with {self._waiting_tokens} prompt tokens wait; "
            f"at most {self._max_waiting} with {self._max_waiting_tokens} may. Try again later or elsewhere",
            retry_after_s=min(max(retry_s, _LEAST_RETRY_S), _MOST_RETRY_S),
        )

    # --- from the core ---

    def take_step(self, frame: messages.StepFrame) -> None:
        """Split a step's results among the readers."""
        self.last_frame_ns = time.monotonic_ns()
        self.load.update(frame.step_id, frame.load)
        split = StepSplit(frame, self._readers, self._clock)
        split.add_tokens()
        for started in frame.started:
            self._start(started, split)
        self._note_progress(frame)
        for end in frame.ends:
            self._end(end, split)
        for number, response in split.responses.items():
            self._readers[number].deliver(response)
        for tell in self._on_step:
            tell(frame)

    def end_all(self, reason: FinishReason, error: str = "") -> None:
        """End every request here and now: the core is gone or does not answer."""
        ends = [
            end for key, request in self._live.items() for end in bare_ends(key, request.open_choices, reason, error)
        ]
        now = time.monotonic_ns()
        self.take_step(frame_of_ends(self.load.step_id + 1, now, ends, self.load.report))

    def _start(self, event: messages.StartedEvent, split: StepSplit) -> None:
        request = self._live.get(event.key)
        if request is None:
            return
        request.started = event
        self._waiting_tokens -= self._waiting.pop(event.key, 0)
        batch = split.batch_for(event.key)
        if batch is not None:
            batch.started.add(
                stream_id=event.key & STREAM_MASK,
                cached_tokens=event.cached_tokens,
                queue_ns=max(0, event.at_ns - request.command.arrival_ns),
                at_ns=self._clock.unix_ns(event.at_ns),
            )

    def _note_progress(self, frame: messages.StepFrame) -> None:
        for chunk in frame.chunks:
            if (request := self._live.get(chunk.key)) is not None:
                request.note_chunk(frame.ended_ns, chunk)
        for preempted in frame.preempted:
            if (request := self._live.get(preempted.key)) is not None:
                request.note_preemption(preempted.at_ns)

    def _end(self, event: messages.EndEvent, split: StepSplit) -> None:
        request = self._live.get(event.key)
        if request is None:
            return
        request.ends.append(event)
        request.open_choices.discard(event.choice)
        batch = split.batch_for(event.key)
        if batch is not None:
            end = batch.ends.add(
                stream_id=event.key & STREAM_MASK,
                choice=event.choice,
                reason=event.reason,
                stop_token_id=event.stop_token_id,
                error=event.error,
            )
            request.fill_usage(end.usage)
            request.fill_timing(end.timing)
        if event.last or not request.open_choices:
            self._finish(request, split.frame.ended_ns)

    def _finish(self, request: LiveRequest, ended_ns: int) -> None:
        key = request.command.key
        del self._live[key]
        self._waiting_tokens -= self._waiting.pop(key, 0)
        for tell in self._on_finish:
            tell(request, ended_ns)
        if not self._live:
            self.idle.set()
