from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from octavo.v1 import engine_pb2
from octavo_engine.page_events import MAX_HASHES_PER_MESSAGE, ResidentPages, publish


async def test_a_message_tells_net_changes_with_the_digest_of_the_whole_set() -> None:
    pages = ResidentPages(epoch=9)
    pages.apply([1, 2, 4], [])
    first = pages.take_message()
    pages.apply([8], [1])
    second = pages.take_message()

    assert first == engine_pb2.PageEvents(epoch=9, sequence=1, stored=[1, 2, 4], digest=7, num_resident=3)
    assert second == engine_pb2.PageEvents(epoch=9, sequence=2, stored=[8], evicted=[1], digest=14, num_resident=3)


async def test_a_page_that_came_and_went_is_not_told() -> None:
    pages = ResidentPages(epoch=9)
    pages.apply([5], [])
    pages.apply([], [5])

    assert pages.take_message() is None
    assert not pages.has_changes


async def test_two_pages_with_one_short_hash_are_one_member() -> None:
    pages = ResidentPages(epoch=9)
    pages.apply([5, 5], [])
    assert pages.take_message() == engine_pb2.PageEvents(epoch=9, sequence=1, stored=[5], digest=5, num_resident=1)

    pages.apply([], [5])
    assert pages.take_message() is None, "the other one is still there"

    pages.apply([], [5])
    assert pages.take_message() == engine_pb2.PageEvents(epoch=9, sequence=2, evicted=[5])


async def test_a_flood_is_told_in_parts() -> None:
    pages = ResidentPages(epoch=9)
    pages.apply(list(range(1, MAX_HASHES_PER_MESSAGE + 2)), [])

    messages = [pages.take_message(), pages.take_message()]

    assert [len(message.stored) for message in messages if message] == [MAX_HASHES_PER_MESSAGE, 1]
    assert not pages.has_changes


async def test_a_replica_fed_by_messages_equals_the_snapshot_at_each_message() -> None:
    pages, replica, rng = ResidentPages(epoch=9), set[int](), random.Random(1)
    held: list[int] = []
    for _ in range(300):
        stored = [rng.randrange(1, 40) for _ in range(rng.randrange(4))]
        held += stored
        evicted = [held.pop(rng.randrange(len(held))) for _ in range(rng.randrange(min(4, len(held) + 1)))]
        pages.apply(stored, evicted)
        message = pages.take_message() if rng.random() < 0.5 else None
        if message is not None:
            replica |= set(message.stored)
            replica -= set(message.evicted)
            assert replica == set(pages.snapshot().hashes)
            assert (message.digest, message.sequence) == (pages.snapshot().digest, pages.snapshot().sequence)
            assert message.num_resident == len(replica) == len(pages)


async def test_changes_of_a_burst_are_published_together() -> None:
    pages = ResidentPages(epoch=9)
    told: asyncio.Queue[engine_pb2.PageEvents] = asyncio.Queue()
    task = asyncio.create_task(publish(pages, told.put_nowait))
    pages.apply([1], [])
    pages.apply([2], [])

    assert list((await told.get()).stored) == [1, 2]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
