from __future__ import annotations

import asyncio

from octavo.redis_keys import RedisKeys
from octavo_router.bus import RedisBus
from octavo_router.fleet import Fleet
from redis.exceptions import ConnectionError as RedisConnectionError


async def test_bus_closes_although_a_broken_connection_hides_the_cancellation(monkeypatch):
    fleet = Fleet((), router_id="r", model_name="m", tokenizer_revision="t")
    bus = RedisBus("redis://127.0.0.1:1", RedisKeys("test:"), router_id="r", fleet=fleet)
    waits = asyncio.Event()

    async def breaks_when_cancelled():
        waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RedisConnectionError from None

    monkeypatch.setattr(bus, "_follow", breaks_when_cancelled)
    bus.start()
    await waits.wait()
    await asyncio.wait_for(bus.close(), 5)
