from __future__ import annotations

import asyncio

import pytest
from octavo.errors import Unavailable
from octavo.v1 import engine_pb2, types_pb2
from octavo_engine import messages
from octavo_engine.clock import Clock
from octavo_engine.draining import Draining
from octavo_engine.ends import bare_ends, frame_of_ends
from octavo_engine.sequence import FinishReason
from octavo_engine.switchboard import Switchboard
from octavo_engine.validation import Validator

FACTS = messages.Ready("m", "r", "t", 1000, 500, [2], 4, 400, "torch", "cpu", "float32", "exact", 64, 8, 0.0)
NO_LOAD = messages.LoadReport(0, 0, 0, 0, 0, 0, 0.0, 0.0)
LONG_S = 60.0


class Engine:
    """A switchboard whose core hands over at once, and a drain of it that leaves service when told."""

    def __init__(self, num_requests: int) -> None:
        self.number = 0
        self.may_leave = asyncio.Event()
        self.may_leave.set()
        self.num_left_service = 0
        self.hurried = asyncio.Event()
        self.asked = asyncio.Event()
        self.board = Switchboard(clock=Clock(offset_ns=0), max_waiting=99, max_waiting_tokens=999)
        self.board.open(self, Validator(FACTS))
        self.draining = Draining(self.board, leave_service=self.leave_service, hurried=self.hurried)
        self._plug = self.board.plugged(self)
        self._plug.__enter__()
        for stream_id in range(num_requests):
            self.submit(stream_id)

    def submit(self, stream_id: int) -> None:
        sampling = types_pb2.SamplingParams(seed=1, max_tokens=9)
        submit = engine_pb2.Submit(stream_id=stream_id, request_id="r", prompt_token_ids=[5], sampling=sampling)
        self.board.submit(self, submit)

    async def leave_service(self) -> None:
        self.asked.set()
        await self.may_leave.wait()
        self.num_left_service += 1

    def finish(self, stream_id: int, reason: FinishReason = FinishReason.LENGTH) -> None:
        self.board.take_step(frame_of_ends(1, 0, bare_ends(self.number << 32 | stream_id, {0}, reason, ""), NO_LOAD))

    def deliver(self, response: engine_pb2.LinkResponse) -> None:
        del response

    def send(self, command: messages.Command) -> None:
        if isinstance(command, messages.HandOff):
            asyncio.get_running_loop().call_soon(self.board.end_all, FinishReason.HANDOFF)

    def hang(self) -> asyncio.Event:
        """Be in a long step from now on; the event says when a command has come."""
        came = asyncio.Event()
        self.send = lambda _command: came.set()  # type: ignore[method-assign]
        return came

    async def drained(self) -> None:
        return

    def drain(self, grace_s: float) -> asyncio.Task[tuple[int, int]]:
        return asyncio.create_task(self.draining.drain(grace_s))


async def test_requests_that_end_in_time_are_counted_as_finished() -> None:
    engine = Engine(2)
    drain = engine.drain(LONG_S)
    await engine.asked.wait()
    engine.finish(0)
    engine.finish(1)

    assert await drain == (2, 0)


async def test_requests_beyond_the_grace_are_handed_over() -> None:
    engine = Engine(3)
    drain = engine.drain(0.0)
    await engine.asked.wait()
    engine.finish(0)

    assert await drain == (1, 2)
    assert len(engine.board) == 0


async def test_nothing_new_is_taken_once_a_drain_has_begun() -> None:
    engine = Engine(0)
    await engine.drain(0.0)

    assert engine.draining.has_begun
    with pytest.raises(Unavailable) as refused:
        engine.submit(1)
    assert refused.value.reason == "draining"


async def test_the_engine_leaves_service_although_the_one_who_asked_goes_away() -> None:
    engine = Engine(1)
    engine.may_leave.clear()
    drain = engine.drain(LONG_S)
    await engine.asked.wait()
    drain.cancel()
    await asyncio.gather(drain, return_exceptions=True)
    engine.may_leave.set()

    assert await engine.drain(0.0) == (0, 1)
    assert engine.num_left_service == 1


async def test_a_short_grace_does_not_wait_behind_a_long_one_and_both_count_right() -> None:
    engine = Engine(3)
    long = engine.drain(LONG_S)
    await engine.asked.wait()
    engine.finish(0)

    assert await engine.drain(0.0) == (0, 2)
    assert await long == (1, 2)
    assert engine.num_left_service == 1


async def test_whoever_asks_while_requests_are_handed_over_sees_them_handed_over() -> None:
    engine = Engine(2)
    handed_off = engine.hang()
    first = engine.drain(0.0)
    await handed_off.wait()
    late = engine.drain(LONG_S)
    await asyncio.sleep(0)
    engine.finish(0, FinishReason.HANDOFF)
    engine.finish(1, FinishReason.HANDOFF)

    assert await first == (0, 2)
    assert await late == (0, 2)


async def test_a_hurry_ends_the_grace_and_does_not_wait_for_a_core_in_a_long_step() -> None:
    engine = Engine(1)
    engine.hang()
    drain = engine.drain(LONG_S)
    await engine.asked.wait()
    engine.hurried.set()

    assert await asyncio.wait_for(drain, 2.0) == (0, 1)


async def test_close_ends_what_still_goes_on() -> None:
    engine = Engine(1)
    engine.may_leave.clear()
    drain = engine.drain(LONG_S)
    await engine.asked.wait()

    await engine.draining.close()

    with pytest.raises(asyncio.CancelledError):
        await drain
