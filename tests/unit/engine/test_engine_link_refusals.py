from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
from octavo.v1 import engine_pb2, types_pb2
from octavo_engine import messages
from octavo_engine.clock import Clock
from octavo_engine.link import Link
from octavo_engine.switchboard import Switchboard
from octavo_engine.validation import Validator

FACTS = messages.Ready("m", "r", "t", 1000, 500, [2], 4, 400, "torch", "cpu", "float32", "exact", 64, 8, 0.0)


class Core:
    def send(self, command: messages.Command) -> None:
        del command

    async def drained(self) -> None:
        return


async def requests(*submits: engine_pb2.Submit) -> AsyncIterator[engine_pb2.LinkRequest]:
    for submit in submits:
        yield engine_pb2.LinkRequest(submit=submit)
    await asyncio.Event().wait()


async def test_beyond_the_bound_the_router_hears_when_to_come_again() -> None:
    board = Switchboard(clock=Clock(0), max_waiting=2, max_waiting_tokens=100)
    board.open(Core(), Validator(FACTS))
    link = Link(board, engine_pb2.Hello(router_id="router-1"))
    sampling = types_pb2.SamplingParams(seed=1)
    submits = [
        engine_pb2.Submit(stream_id=number, request_id="r", prompt_token_ids=[5], sampling=sampling)
        for number in range(1, 4)
    ]

    with board.plugged(link):
        async with aclosing(link.run(requests(*submits))) as received:
            rejected = (await anext(received)).rejected

    assert rejected.stream_id == 3
    assert rejected.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert rejected.reason == "too_many_waiting"
    assert rejected.retry_after_ms == 1000
