from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from octavo.errors import InvalidRequest, Overloaded
from octavo.v1 import engine_pb2
from octavo_engine.outbox import Outbox


def a_message(number: int) -> engine_pb2.LinkResponse:
    return engine_pb2.LinkResponse(heartbeat=engine_pb2.Heartbeat(step_id=number))


async def taken(outbox: Outbox) -> list[int]:
    async with aclosing(outbox.messages()) as messages:
        return [message.heartbeat.step_id async for message in messages]


async def test_messages_come_in_order_and_a_finished_outbox_gives_them_all() -> None:
    outbox = Outbox()
    outbox.put(a_message(1))
    outbox.put(a_message(2))
    outbox.finish()
    outbox.put(a_message(3))

    assert await taken(outbox) == [1, 2]


async def test_a_reader_waits_for_a_message() -> None:
    outbox = Outbox()
    reading = asyncio.create_task(taken(outbox))
    await asyncio.sleep(0)
    outbox.put(a_message(1))
    outbox.finish()

    assert await reading == [1]


async def test_a_reader_that_lags_loses_its_stream_and_the_memory_is_free() -> None:
    outbox = Outbox(max_messages=2)
    for number in range(4):
        outbox.put(a_message(number))

    assert len(outbox) == 0
    with pytest.raises(Overloaded) as lost:
        await taken(outbox)
    assert lost.value.reason == "link_not_drained"


async def test_the_first_reason_to_close_is_the_one_that_counts() -> None:
    outbox = Outbox()
    outbox.close(InvalidRequest("first", "first"))
    outbox.close()

    with pytest.raises(InvalidRequest, match="first"):
        await taken(outbox)
