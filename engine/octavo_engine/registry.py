"""Announces the engine in Redis: a lease with its load, notices of join and leave, and page events.

Redis is a bus. Nothing waits for it: one task writes behind, and while Redis is away the engine serves on, routers get
the same events on their links, and a gap in the numbers of page events makes them ask for a snapshot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import redis.asyncio
import structlog
from octavo.redis_client import connect, heed_cancellation
from octavo.redis_keys import (
    FLEET_MAXLEN,
    FLEET_TTL_MS,
    LEASE_PERIOD_S,
    LEASE_TTL_MS,
    PAGES_MAX_ENTRY_BYTES,
    PAGES_MAXLEN,
    PAGES_TTL_MS,
    Entry,
    Lease,
    RedisKeys,
)
from octavo.v1 import engine_pb2
from redis.exceptions import RedisError

_MAX_PENDING_EVENTS = 1024
_MAX_EVENTS_PER_WRITE = 128

Fields = dict[bytes | bytearray | memoryview | str | int | float, bytes | bytearray | memoryview | str | int | float]

_log = structlog.get_logger()


class Registry:
    """An engine's presence in Redis.

    Args:
        url: see `octavo.redis_url`.
        keys: names of keys.
        info: facts about the engine.
        address: where routers dial.
        load: gives the newest load.
        on_change: told when Redis comes or goes.
    """

    def __init__(
        self,
        url: str,
        keys: RedisKeys,
        *,
        info: engine_pb2.EngineInfo,
        address: str,
        load: Callable[[], engine_pb2.Load],
        on_change: Callable[[bool], None],
    ) -> None:
        self._redis = connect(url, max_connections=2)
        self._keys = keys
        self._info = info
        self._address = address
        self._load = load
        self._on_change = on_change
        self._is_up: bool | None = None
        self._is_announced = False
        self._events: deque[bytes] = deque(maxlen=_MAX_PENDING_EVENTS)
        self._changed = asyncio.Event()
        self._is_leaving = False
        self._writing = asyncio.Lock()

    def publish(self, events: engine_pb2.PageEvents) -> None:
        """Queue a page-event message. One that is very long is left out, and too many drop the oldest: routers see gaps."""
        if events.ByteSize() <= PAGES_MAX_ENTRY_BYTES:
            self._events.append(events.SerializeToString())
            self._changed.set()

    async def run(self) -> None:
        """Renew the lease and write page events until cancelled."""
        clock = asyncio.get_running_loop().time
        lease_due_s = clock()
        while not self._is_leaving:
            heed_cancellation()
            is_lease_due = clock() >= lease_due_s
            await self._attempt(self._write(is_lease_due=is_lease_due))
            if is_lease_due:
                lease_due_s = clock() + LEASE_PERIOD_S
            self._changed.clear()
            if self._events and self._is_up:
                continue
            try:
                async with asyncio.timeout_at(lease_due_s):
                    await (self._changed.wait() if self._is_up else asyncio.Event().wait())
            except TimeoutError:
                continue

    async def leave(self, kind: str) -> None:
        """Give the lease back for good, with a notice of `kind` "drain" or "leave"."""
        self._is_leaving = True
        await self._attempt(self._write_leave(kind))

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()

    async def _write(self, *, is_lease_due: bool) -> None:
        if self._is_leaving:
            return
        keys, info = self._keys, self._info
        # Events that a failed write loses are a gap in their numbers: routers ask for a snapshot.
        events = [self._events.popleft() for _ in range(min(len(self._events), _MAX_EVENTS_PER_WRITE))]
        pages = keys.pages(info.engine_id, info.epoch)
        async with self._redis.pipeline(transaction=False) as pipeline:
            if is_lease_due:
                lease = keys.lease(info.engine_id)
                fields: Fields = {
                    Lease.ADDRESS: self._address,
                    Lease.EPOCH: str(info.epoch),
                    Lease.MODEL: info.model.name,
                    Lease.LOAD: self._load().SerializeToString(),
                }
                pipeline.hset(lease, mapping=fields)
                pipeline.pexpire(lease, LEASE_TTL_MS)
            if not self._is_announced:
                self._add_notice(pipeline, "join")
            for message in events:
                pipeline.xadd(pages, {Entry.EVENTS: message}, maxlen=PAGES_MAXLEN, approximate=True)
            if is_lease_due or events:  # last: an entry may have made the stream anew
                pipeline.pexpire(pages, PAGES_TTL_MS)
            results = await pipeline.execute()
        was_lease_lost = self._is_announced and is_lease_due and results[0] > 0  # HSET added fields
        self._is_announced = True
        if was_lease_lost:  # Redis was emptied, or this process stood still: routers may have forgotten it
            await self._write_notice("join")

    async def _write_notice(self, kind: str) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            self._add_notice(pipeline, kind)
            await pipeline.execute()

    async def _write_leave(self, kind: str) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.delete(self._keys.lease(self._info.engine_id))
            self._add_notice(pipeline, kind)
            await pipeline.execute()

    def _add_notice(self, pipeline: redis.asyncio.client.Pipeline, kind: str) -> None:
        fields: Fields = {Entry.KIND: kind, Entry.ENGINE_ID: self._info.engine_id}
        pipeline.xadd(self._keys.fleet, fields, maxlen=FLEET_MAXLEN, approximate=True)
        pipeline.pexpire(self._keys.fleet, FLEET_TTL_MS)

    async def _attempt(self, write: Awaitable[None]) -> None:
        try:
            async with self._writing:
                await write
        except (RedisError, OSError) as error:
            heed_cancellation()
            self._is_announced = False  # a restarted Redis has forgotten the notice
            self._note(is_up=False, error=type(error).__name__)
        else:
            self._note(is_up=True)

    def _note(self, *, is_up: bool, error: str = "") -> None:
        if is_up != self._is_up:
            self._is_up = is_up
            self._on_change(is_up)
            if is_up:
                _log.info("redis_up")
            else:
                _log.warning("redis_down", error=error)
