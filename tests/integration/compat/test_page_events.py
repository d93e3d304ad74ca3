from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from smg_grpc_proto.generated import common_pb2
from support.engine_process import running_engine
from support.fake_core import expected_tokens
from support.shared_engine import Addresses, shared_engine
from support.vllm_client import a_request, answer_to, vllm_stub

PROMPT = list(range(100, 150))  # three full pages of 16


class Subscriber:
    """What a gateway knows of an engine's pages."""

    def __init__(self, vllm: Any) -> None:
        self.call = vllm.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(), timeout=30)
        self.prefixes: dict[int, tuple[int, ...]] = {}
        self.sequences: list[int] = []
        self.snapshots: list[Any] = []
        self.loads: list[Any] = []

    async def until(self, holds: Callable[[], bool]) -> None:
        while not self.loads or not holds():
            self.take(await self.call.read())

    async def until_it_knows(self, num_pages: int) -> None:
        await self.until(lambda: len(self.prefixes) == num_pages)

    async def until_load(self, holds: Callable[[Any], bool]) -> Any:
        await self.until(lambda: holds(self.loads[-1]))
        return self.loads[-1]

    def take(self, batch: Any) -> None:
        self.loads.append(batch.load)
        if batch.load.load_only:
            assert not batch.events
            assert batch.sequence_number == self.sequences[-1]
            return
        self.sequences.append(batch.sequence_number)
        if batch.HasField("snapshot"):
            self.snapshots.append(batch.snapshot)
        for event in batch.events:
            if event.HasField("cleared"):
                self.prefixes.clear()
            elif event.HasField("stored"):
                self._store(event.stored)
            else:
                for block_hash in event.removed.block_hashes:
                    del self.prefixes[block_hash]

    def _store(self, stored: Any) -> None:
        prefix = self.prefixes[stored.parent_block_hash] if stored.HasField("parent_block_hash") else ()
        for block in stored.blocks:
            assert len(block.token_ids) == block.block_size == 16
            prefix = self.prefixes[block.block_hash] = (*prefix, *block.token_ids)


@pytest.fixture(scope="module")
def own() -> Iterator[Addresses]:
    """An engine whose pages only the tests here touch."""
    with shared_engine(OCTAVO_ENGINE_VLLM_SERVICE="true") as addresses:
        yield addresses


@pytest_asyncio.fixture
async def vllm(own: Addresses) -> AsyncIterator[Any]:
    """What a gateway has of that engine, which holds no page."""
    async with grpc.aio.insecure_channel(own.engine) as channel:
        vllm = vllm_stub(channel)
        await vllm.FlushCache(common_pb2.FlushCacheRequest())
        yield vllm


async def test_a_subscriber_learns_the_tokens_of_every_prefix(vllm: Any) -> None:
    subscriber = Subscriber(vllm)
    await subscriber.until_it_knows(0)

    await answer_to(vllm, a_request(PROMPT, max_tokens=20))  # 69 tokens computed: four full pages
    await subscriber.until_it_knows(4)

    tokens = (*PROMPT, *expected_tokens(PROMPT, 20))
    assert sorted(subscriber.prefixes.values()) == [tokens[:16], tokens[:32], tokens[:48], tokens[:64]]
    assert subscriber.sequences == list(range(subscriber.sequences[0], subscriber.sequences[-1] + 1))


async def test_a_late_subscriber_gets_a_snapshot_that_agrees(vllm: Any) -> None:
    early = Subscriber(vllm)
    await answer_to(vllm, a_request(PROMPT))
    await answer_to(vllm, a_request([*PROMPT[:32], *range(300, 320)]))
    await early.until_it_knows(4)

    late = Subscriber(vllm)
    await late.until_it_knows(4)

    assert late.prefixes == early.prefixes
    assert late.sequences == early.sequences[-1:]
    assert (late.snapshots[0].count, late.snapshots[0].blocks) == (1, 4)


async def test_a_flush_removes_every_page(vllm: Any) -> None:
    subscriber = Subscriber(vllm)
    await answer_to(vllm, a_request(PROMPT))
    await subscriber.until_it_knows(3)

    flushed = await vllm.FlushCache(common_pb2.FlushCacheRequest())
    await subscriber.until_it_knows(0)
    again = await vllm.FlushCache(common_pb2.FlushCacheRequest())

    assert flushed.success
    assert (flushed.message, again.message) == ("3 pages dropped", "0 pages dropped")


async def test_pages_of_a_full_pool_go_as_they_are_evicted() -> None:
    async with running_engine("--vllm-service", "--num-pages", "8") as engine:
        vllm = vllm_stub(engine.channel())
        subscriber = Subscriber(vllm)
        for start in (100, 200, 300, 400):
            await answer_to(vllm, a_request(list(range(start, start + 50))))
        await subscriber.until(lambda: tuple(range(400, 448)) in subscriber.prefixes.values())

    assert tuple(range(100, 148)) not in subscriber.prefixes.values()
    assert len(subscriber.prefixes) <= 8


async def test_the_load_comes_without_asking(vllm: Any) -> None:
    subscriber = Subscriber(vllm)
    call = vllm.Generate(a_request(PROMPT, max_tokens=4000))
    await call.read()

    busy = await subscriber.until_load(lambda load: load.running_requests == 1)
    call.cancel()
    idle = await subscriber.until_load(lambda load: load.running_requests == 0)

    assert busy.token_usage > 0
    assert busy.HasField("engine_silence_ms")
    assert busy.engine_reports_steps
    assert not idle.HasField("engine_silence_ms")
    assert idle.token_usage == 0


async def test_without_prefix_caching_there_is_nothing_to_tell() -> None:
    async with running_engine("--vllm-service", "--no-prefix-caching") as engine:
        vllm = vllm_stub(engine.channel())
        subscriber = Subscriber(vllm)
        await answer_to(vllm, a_request(PROMPT))
        await subscriber.until_load(lambda load: load.load_only)

    assert not subscriber.prefixes
