"""Carries one request from its prompt to its last token, over as many engines as it takes.

    route -> submit -> deliver what comes -> (engine lost: route again, with the output so far) -> end

The journal holds what was accepted, the outputs what was delivered. Nothing is queued in between: a slow client is given
all that has come since its last message at once, and credit keeps the engine from running further ahead than agreed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from octavo.attributes import Attribute, Event, Span
from octavo.errors import OctavoError, Overloaded, Unavailable
from octavo.tracing import traceparent_of
from octavo.v1 import engine_pb2, types_pb2
from opentelemetry import trace

from octavo_router.attempt import Attempt, AttemptOver, Fate
from octavo_router.detokenizer import Detokenizer
from octavo_router.fleet import Engine
from octavo_router.journal import Ending, Journal, Limits, Timing
from octavo_router.kind import EngineKind
from octavo_router.load import Placement
from octavo_router.output import ChoiceEnded, ChoiceOutput, Chunk
from octavo_router.policy import Cost
from octavo_router.route_span import route_attributes
from octavo_router.routing import Prompt, Route, Routing

_log = structlog.get_logger("octavo.router.dispatch")

# Refusals and handovers cost a request nothing, but they may not go on for ever.
_MAX_ATTEMPTS = 32
_RETRY_S = 0.2
_MAX_RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A validated request.

    Attributes:
        request_id: the client's name for it.
        prompt: the prompt.
        sampling: with seed, max_tokens and n set.
        room: output tokens that an engine's context should have room for.
        stops: stop strings.
        priority: class of service.
        deadline: monotonic seconds.
    """

    request_id: str
    prompt: Prompt
    sampling: types_pb2.SamplingParams
    room: int
    stops: Sequence[str]
    priority: types_pb2.Priority.ValueType
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The request is on its way to an engine."""

    engine_id: str
    matched_pages: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """See the settings of the same names."""

    max_ahead_tokens: int
    max_moves: int
    move_wait_s: float


class Dispatch:
    """One request. `events` is read once; closing it early gives the request up at its engine at once."""

    def __init__(
        self,
        work: Work,
        *,
        routing: Routing,
        detokenizer: Callable[[], Detokenizer],
        limits: DispatchLimits,
        tracer: trace.Tracer,
    ) -> None:
        self.journal = Journal(work.prompt.token_ids, num_choices=work.sampling.n, limits=_limits(work.sampling, ()))
        self.engine_id = ""
        self.route_s = 0.0
        self._work = work
        self._routing = routing
        self._limits = limits
        self._tracer = tracer
        self._outputs = [ChoiceOutput(choice, detokenizer(), work.stops) for choice in self.journal.choices]
        self._wake = asyncio.Event()
        self._engine: Engine | None = None
        self._attempt: Attempt | None = None
        self._placement: Placement | None = None
        self._stream_id = 0
        self._kind: EngineKind | None = None
        self._credit = limits.max_ahead_tokens
        self._left: set[tuple[str, int]] = set()  # engine processes that this request has been at
        self._num_losses = 0

    @property
    def timing(self) -> Timing:
        """Where the time at the last engine went."""
        return self.journal.timing if self._attempt is None else self._attempt.timing

    async def events(self) -> AsyncGenerator[Placed | Chunk | ChoiceEnded, None]:
        """Yield where the request went, then its output, choice by choice in order, each up to its end.

        Raises:
            OctavoError: no engine can take the request, or go on with it.
        """
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(0.0, self._work.deadline - time.monotonic()), self._expire)
        try:
            yield self._submit()
            while True:
                await self._wake.wait()
                self._wake.clear()
                for output in self._outputs:
                    chunk, ended = output.take()
                    if ended is not None:
                        self._let_go(ended.index)
                    if chunk is not None:
                        self._note_prefilled()
                        yield chunk
                    if ended is not None:
                        yield ended
                if all(output.is_over for output in self._outputs):
                    return
                self._extend_credit()
                if self._attempt is not None and self._attempt.over is not None:
                    await self._move(self._attempt.over)
        finally:
            timer.cancel()
            self._give_up()

    def _note_prefilled(self) -> None:
        if self._engine is not None and self._placement is not None:
            self._engine.load.prefilled(self._placement)

    def _expire(self) -> None:
        self.journal.end_all(Ending.DEADLINE)
        self._wake.set()

    def _let_go(self, choice: int) -> None:
        """Cancel a choice that ended here, at its stop string: the engine would compute it on while its siblings run."""
        if all(output.is_over for output in self._outputs):
            return  # the whole request is given up in a moment
        if self._engine is not None and self._attempt is not None and self._attempt.is_choice_open(choice):
            self._engine.link.cancel_choice(self._stream_id, self._attempt, choice)

    def _give_up(self) -> None:
        if self._engine is not None and self._attempt is not None:
            self._engine.link.cancel(self._stream_id, self._attempt)
        if self._engine is not None and self._placement is not None:
            self._engine.load.ended(self._placement)

    def _submit(self, excluded: Collection[tuple[str, int]] = ()) -> Placed:
        """Send the request to the best engine that can be reached.

        Raises:
            Unavailable: there is none.
        """
        route = self._route(excluded)
        for cost in route.ranked:
            engine = self._routing.fleet.engine(cost.engine_id)
            if engine is not None:
                with suppress(Unavailable):
                    self._start(engine, cost)
                    return Placed(engine_id=cost.engine_id, matched_pages=cost.matched_pages, reason=route.reason)
        raise Unavailable("no_engine", "no engine can take the request now; try again", retry_after_s=1.0)

    def _route(self, excluded: Collection[tuple[str, int]]) -> Route:
        started_at = time.perf_counter()
        with self._tracer.start_as_current_span(Span.ROUTER_ROUTE, record_exception=False) as span:
            route = self._routing.route(
                self._work.prompt,
                room=self._work.room,
                num_committed=max(
                    (len(each.token_ids) for each in self.journal.choices if each.ending is None), default=0
                ),
                kind=self._bound_kind,
                excluded=excluded,
            )
            if span.is_recording():
                span.set_attributes(route_attributes(route, self.journal.num_attempts))
        self.route_s += time.perf_counter() - started_at
        return route

    @property
    def _bound_kind(self) -> EngineKind | None:
        """The kind of engine that began the output: another kind would go on with other tokens. None without output."""
        return self._kind if self.journal.is_committed else None

    def _start(self, engine: Engine, cost: Cost) -> None:
        attempt = Attempt(self.journal, number=self.journal.num_attempts, wake=self._wake.set)
        self._stream_id = engine.link.submit(self._message(attempt.number), attempt)
        self.journal.num_attempts += 1
        # What an earlier engine of another model revision calls the end of a sequence does not count here.
        self.journal.limits = _limits(self._work.sampling, engine.info.model.eos_token_ids)
        self._engine, self._attempt, self._kind = engine, attempt, engine.kind
        self.engine_id = engine.engine_id
        if self._work.sampling.max_tokens > self._credit:
            engine.link.credit(self._stream_id, attempt, self._credit)
        num_sequences = sum(choice.ending is None for choice in self.journal.choices)
        self._placement = self._routing.place(engine, self._work.prompt, cost, num_sequences=num_sequences)

    def _message(self, number: int) -> engine_pb2.Submit:
        message = engine_pb2.Submit(
            request_id=self._work.request_id,
            prompt_token_ids=self._work.prompt.token_ids,
            sampling=self._work.sampling,
            priority=self._work.priority,
            timeout_ms=max(1, round((self._work.deadline - time.monotonic()) * 1000)),
            traceparent=traceparent_of(trace.get_current_span()),
            attempt=number,
            cache_salt=self._work.prompt.cache_salt,
        )
        if self.journal.is_committed:
            for choice in self.journal.choices:
                message.committed.add(token_ids=choice.token_ids, finished=choice.ending is not None)
        return message

    def _extend_credit(self) -> None:
        if self._credit >= self._work.sampling.max_tokens or self._engine is None or self._attempt is None:
            return
        delivered = min(output.num_delivered for output in self._outputs if not output.is_over)
        if self._credit - delivered <= self._limits.max_ahead_tokens // 2:
            self._credit = delivered + self._limits.max_ahead_tokens
            self._engine.link.credit(self._stream_id, self._attempt, self._credit)

    async def _move(self, over: AttemptOver) -> None:
        """Go on at another engine.

        Raises:
            OctavoError: there is no other engine, or this request has lost enough of them.
        """
        self._leave()
        if self.journal.is_finished:
            self._wake.set()
            return
        if over.fate is Fate.REFUSED:
            if not self.journal.is_committed:
                self._submit_elsewhere(over.error)
                return
            # Output that the client already has is worth waiting for.
            await asyncio.sleep(min(over.error.retry_after_s or _RETRY_S, _MAX_RETRY_S, self._time_left_s()))
            if not self._time_left_s():
                self._expire()
                return
        self._check_move(over)
        if not await self._submit_when_possible(over.error):
            return
        # A handover is a move too; a refusal is none, for that engine never had the request.
        self.journal.num_moves += over.fate is not Fate.REFUSED
        attempt = self.journal.num_attempts - 1
        trace.get_current_span().add_event(
            Event.MOVED, {Attribute.ENGINE_ID: self.engine_id, Attribute.ATTEMPT: attempt}
        )

    def _leave(self) -> None:
        """Be at no engine. Choices that had ended unknown to us end now."""
        self.journal.timing = self.timing
        self._give_up()
        if self._engine is not None:
            self._left.add((self._engine.engine_id, self._engine.epoch))
        self._engine = self._attempt = None
        self.journal.settle()

    def _submit_elsewhere(self, refusal: OctavoError) -> None:
        """Try the engines that have not refused; if none is left, the refusal says more than that there is none."""
        if not isinstance(refusal, Overloaded | Unavailable) or self.journal.num_attempts >= _MAX_ATTEMPTS:
            raise refusal
        try:
            self._submit(excluded=self._left)
        except Unavailable:
            raise refusal from None

    def _check_move(self, over: AttemptOver) -> None:
        # A drain is orderly, however many engines drain.
        self._num_losses += over.fate in {Fate.LOST, Fate.FAILED}
        _log.info(
            "request_moves",
            request_id=self._work.request_id,
            engine_id=self.engine_id,
            fate=over.fate.value,
            reason=over.error.reason,
            num_output_tokens=self.journal.num_output_tokens,
        )
        if self._num_losses > self._limits.max_moves or self.journal.num_attempts >= _MAX_ATTEMPTS:
            raise over.error

    async def _submit_when_possible(self, error: OctavoError) -> bool:
        """Wait for an engine as long as the settings allow; a lost one may have come back. False: the deadline passed."""
        give_up_at = time.monotonic() + self._limits.move_wait_s
        while not self.journal.is_finished:
            changed = self._routing.fleet.changed
            for excluded in (self._left, ()):
                with suppress(Unavailable):
                    self._submit(excluded=excluded)
                    return True
            try:
                async with asyncio.timeout(min(max(0.0, give_up_at - time.monotonic()), self._time_left_s())):
                    await changed.wait()
            except TimeoutError:
                if give_up_at < self._work.deadline:
                    raise self._stranded(error) from None
                self._expire()
        return False

    def _stranded(self, error: OctavoError) -> OctavoError:
        """Return why the request cannot go on: `error`, unless there are engines, but none of the kind that began it."""
        kinds = {engine.kind for engine in self._routing.fleet.serving()}
        if self._bound_kind is None or not kinds or self._bound_kind in kinds:
            return error
        return Unavailable(
            "no_engine_of_kind",
            f"the engine was lost, and only one of its kind ({self._bound_kind}) could go on with its very tokens; "
            "send the request again",
            retry_after_s=1.0,
        )

    def _time_left_s(self) -> float:
        return max(0.0, self._work.deadline - time.monotonic())


def _limits(sampling: types_pb2.SamplingParams, eos_token_ids: Iterable[int]) -> Limits:
    """Return what ends a choice at an engine whose model has these end-of-sequence ids."""
    return Limits(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stop_token_ids=frozenset(sampling.stop_token_ids).union(() if sampling.ignore_eos else eos_token_ids),
    )
