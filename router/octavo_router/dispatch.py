"""Carries one request from its prompt to its last token, over as many engines as it takes.

    (resumed: restore the output so far) -> route -> submit -> deliver what comes
        -> (engine lost: route again, with the output so far) -> end

The journal holds what was accepted, the outputs what was delivered. Nothing is queued in between: a slow client is given
all that has come since its last message at once, and credit keeps the engine from running further ahead than agreed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import suppress

import structlog
from octavo.attributes import Attribute, Event
from octavo.errors import OctavoError, Overloaded, Unavailable
from octavo.tracing import traceparent_of
from octavo.v1 import engine_pb2
from opentelemetry import trace

from octavo_router.attempt import Attempt, AttemptOver, Fate
from octavo_router.decision import Decision
from octavo_router.detokenizer import Detokenizer
from octavo_router.fleet import Engine
from octavo_router.journal import Ending, Journal, Timing
from octavo_router.losses import Losses
from octavo_router.output import ChoiceEnded, ChoiceOutput, Chunk
from octavo_router.policy import Cost
from octavo_router.resume import Resumption
from octavo_router.routing import Routing
from octavo_router.search import Search
from octavo_router.stay import Stay
from octavo_router.work import DispatchLimits, Placed, Work

_log = structlog.get_logger("octavo.router.dispatch")

# Refusals and handovers cost a request nothing, but they may not go on for ever.
_MAX_ATTEMPTS = 32
_RETRY_S = 0.2
_MAX_RETRY_S = 1.0


class Dispatch:
    """One request. `events` is read once; closing it early gives the request up at its engine at once."""

    def __init__(
        self,
        work: Work,
        *,
        routing: Routing,
        detokenizer: Callable[[], Detokenizer],
        limits: DispatchLimits,
    ) -> None:
        self.journal = Journal(work.prompt.token_ids, num_choices=work.sampling.n, limits=work.limits(()))
        self.engine_id = ""
        self._work = work
        self._search = Search(work, self.journal, routing=routing)
        self._routing = routing
        self._limits = limits
        self._outputs = [ChoiceOutput(choice, detokenizer(), work.stops) for choice in self.journal.choices]
        self._wake = asyncio.Event()
        self._stay: Stay | None = None
        self._credit = limits.max_ahead_tokens
        self._left: set[tuple[str, int]] = set()  # engine processes that this request has been at
        self._losses = Losses(limits.max_moves)

    @property
    def timing(self) -> Timing:
        """Where the time at the last engine went."""
        return self.journal.timing if self._stay is None else self._stay.timing

    @property
    def engine_kind(self) -> str:
        """Fingerprint of the kind of engine that gives the output; empty before there is one."""
        return "" if self._search.kind is None else self._search.kind.fingerprint

    @property
    def decisions(self) -> Sequence[Decision]:
        """Where it should go, each time that this was decided."""
        return self._search.decisions

    async def events(self) -> AsyncGenerator[Placed | Chunk | ChoiceEnded, None]:
        """Yield where the request went, then its output, choice by choice in order, each up to its end.

        Raises:
            OctavoError: no engine can take the request, or go on with it.
        """
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(0.0, self._work.deadline - time.monotonic()), self._expire)
        try:
            yield await self._begin()
            while True:
                await self._wake.wait()
                self._wake.clear()
                for output in self._outputs:
                    chunk, ended = output.take()
                    if ended is not None:
                        self._let_go(ended.index)
                    if chunk is not None:
                        if self._stay is not None:
                            self._stay.note_prefilled()
                        yield chunk
                    if ended is not None:
                        yield ended
                if all(output.is_over for output in self._outputs):
                    return
                self._extend_credit()
                if self._stay is not None and self._stay.over is not None:
                    await self._move(self._stay.over)
        finally:
            timer.cancel()
            self._give_up()

    async def _begin(self) -> Placed:
        """Send the request to its first engine here; a resumed one goes on where its client is."""
        resumed = self._work.resumed
        if resumed is None:
            first = self._submit()
            await asyncio.sleep(0)  # the link sends it first: the engine works while the rest is done
            self._routing.settle()
            return first
        await self._restore(resumed)
        self._wake.set()  # what the tokens mean beyond the text that the client has, and ends that it was not told
        if not self.journal.is_finished:
            placed = await self._submit_when_possible(_no_engine())
            if placed is not None:
                return placed
        return Placed(engine_id="", matched_pages=0, reason="resumed: nothing is left to compute")

    async def _restore(self, resumed: Resumption) -> None:
        wait_s = min(self._limits.move_wait_s, self._time_left_s())
        engine = await self._search.engine_of_kind(resumed.engine_kind, wait_s=wait_s)
        self._search.kind = engine.kind
        self.journal.limits = self._work.limits(engine.info.model.eos_token_ids)
        await asyncio.to_thread(resumed.restore, self.journal, self._outputs)
        _log.info(
            "request_resumed", request_id=self._work.request_id, num_output_tokens=self.journal.num_resumed_tokens
        )
        delivered = (output.num_delivered for output in self._outputs if not output.is_over)
        self._credit += min(delivered, default=0)

    def _expire(self) -> None:
        self.journal.end_all(Ending.DEADLINE)
        self._wake.set()

    def _let_go(self, choice: int) -> None:
        """Cancel a choice that ended here, at its stop string: the engine would compute it on while its siblings run."""
        if all(output.is_over for output in self._outputs):
            return  # the whole request is given up in a moment
        if self._stay is not None:
            self._stay.cancel_choice(choice)

    def _give_up(self) -> None:
        if self._stay is not None:
            self._stay.give_up()

    def _submit(self, excluded: Collection[tuple[str, int]] = ()) -> Placed:
        """Send the request to the best engine that can be reached.

        Raises:
            Unavailable: there is none.
        """
        for engine, cost, placed in self._search.candidates(excluded):
            with suppress(Unavailable):
                self._start(engine, cost)
                return placed
        raise _no_engine()

    def _start(self, engine: Engine, cost: Cost) -> None:
        attempt = Attempt(self.journal, number=self.journal.num_attempts, wake=self._wake.set)
        message = self._message(attempt.number)
        cached = cost.matched_pages * engine.page_size
        message.submit.expected_cached_tokens = max(0, min(cached, len(self._work.prompt) - 1))
        self._stay = Stay(engine, message, attempt)
        self.journal.num_attempts += 1
        # What an earlier engine of another model revision calls the end of a sequence does not count here.
        self.journal.limits = self._work.limits(engine.info.model.eos_token_ids)
        self._search.kind = engine.kind
        self.engine_id = engine.engine_id
        if self._work.sampling.max_tokens > self._credit:
            self._stay.extend_credit(self._credit)
        num_sequences = sum(choice.ending is None for choice in self.journal.choices)
        self._stay.placement = self._routing.place(
            engine,
            self._work.prompt,
            cost,
            stream_id=self._stay.stream_id,
            num_sequences=num_sequences,
            output_tokens=num_sequences * self._work.expected_output,
        )

    def _message(self, number: int) -> engine_pb2.LinkRequest:
        message = engine_pb2.LinkRequest()
        submit = message.submit  # filled in place: making a message of a message copies it, with the whole prompt
        submit.request_id = self._work.request_id
        submit.prompt_token_ids.extend(self._work.prompt.token_ids)
        submit.sampling.CopyFrom(self._work.sampling)
        submit.priority = self._work.priority
        submit.timeout_ms = max(1, round(self._time_left_s() * 1000))
        submit.traceparent = traceparent_of(trace.get_current_span())
        submit.attempt = number
        submit.cache_salt = self._work.prompt.cache_salt
        if self.journal.is_committed:
            for choice in self.journal.choices:
                submit.committed.add(token_ids=choice.token_ids, finished=choice.ending is not None)
        return message

    def _extend_credit(self) -> None:
        if self._credit >= self._work.sampling.max_tokens or self._stay is None:
            return
        delivered = min(output.num_delivered for output in self._outputs if not output.is_over)
        if self._credit - delivered <= self._limits.max_ahead_tokens // 2:
            self._credit = delivered + self._limits.max_ahead_tokens
            self._stay.extend_credit(self._credit)

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
        if await self._submit_when_possible(over.error) is None:
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
        if self._stay is not None:
            self._left.add((self._stay.engine.engine_id, self._stay.engine.epoch))
        self._stay = None
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
        _log.info(
            "request_moves",
            request_id=self._work.request_id,
            engine_id=self.engine_id,
            fate=over.fate.value,
            reason=over.error.reason,
            num_output_tokens=self.journal.num_output_tokens,
        )
        failure = self._losses.note(over, self.journal.num_output_tokens)
        if failure is not None or self.journal.num_attempts >= _MAX_ATTEMPTS:
            raise failure or over.error

    async def _submit_when_possible(self, error: OctavoError) -> Placed | None:
        """Wait for an engine as long as the settings allow; a lost one may have come back. None: the deadline passed."""
        give_up_at = time.monotonic() + self._limits.move_wait_s
        while not self.journal.is_finished:
            changed = self._search.changed
            for excluded in (self._left, ()):
                with suppress(Unavailable):
                    return self._submit(excluded=excluded)
            try:
                async with asyncio.timeout(min(max(0.0, give_up_at - time.monotonic()), self._time_left_s())):
                    await changed.wait()
            except TimeoutError:
                if give_up_at < self._work.deadline:
                    raise self._search.stranded(error) from None
                self._expire()
        return None

    def _time_left_s(self) -> float:
        return max(0.0, self._work.deadline - time.monotonic())


def _no_engine() -> Unavailable:
    return Unavailable("no_engine", "no engine can take the request now; try again", retry_after_s=1.0)
