"""The Redis side of a router: reads leases, page events and placement notes, and writes its own placement notes.

Everything read here is a hint, decoded strictly and dropped if it makes no sense. Nothing waits for Redis: when it is
away the links go on telling the router all it needs, and this module tries again until it is back.
"""

from __future__ import annotations

import asyncio
import re
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar, cast

import structlog
from google.protobuf.message import DecodeError, Message
from octavo import redis_keys
from octavo.redis_client import connect, heed_cancellation
from octavo.redis_keys import Entry, Lease, RedisKeys
from octavo.v1 import engine_pb2
from redis.exceptions import RedisError, ResponseError

from octavo_router.fleet import Fleet
from octavo_router.load import PlacementNote

_log = structlog.get_logger("octavo.router.redis")

_FOLLOW = "follow"
_BLOCK_MS = 250
_READ_TIMEOUT_S = 1.0
_LEASE_CHECK_S = 0.5
_REMEMBER_S = 120.0
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 1.0
_MAX_NOTES = 4096
_MAX_NOTE_PAGES = 64
_MAX_NOTE_TOKENS = 1 << 24
_MAX_NOTE_SEQUENCES = 1 << 10
_MAX_ENTRIES = 1000
_ADDRESS = re.compile(r"[A-Za-z0-9_.\-\[\]:]{1,255}:\d{1,5}")
_ENGINE_ID = re.compile(r"[\x21-\x7e]{1,128}")

_M = TypeVar("_M", bound=Message)
_Fields = Mapping[bytes, bytes]
_Positions = dict[bytes | str | memoryview, int | bytes | str | memoryview]
# What redis-py answers to XREAD under RESP2: one pair per stream that has news.
_Streams = list[tuple[bytes, list[tuple[bytes, _Fields]]]]


class RedisBus:
    """Feeds the fleet from Redis and carries this router's placement notes to the others."""

    def __init__(self, url: str, keys: RedisKeys, *, router_id: str, fleet: Fleet) -> None:
        self.is_up = False
        self._keys = keys
        self._router_id = router_id
        self._fleet = fleet
        self._reader = connect(url, timeout_s=_READ_TIMEOUT_S, max_connections=2)
        self._client = connect(url, max_connections=4)  # three tasks use it
        self._is_down_told = False
        self._refused: set[str] = set()  # tasks whose last command Redis answered with an error
        self._seen_at: dict[str, float] = {}  # engine id -> when it last held a lease
        self._positions: _Positions = {}  # stream key -> id of the last entry read
        self._page_streams: dict[str, str] = {}  # stream key -> engine id
        self._notes: deque[PlacementNote] = deque(maxlen=_MAX_NOTES)
        self._noted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to read and write."""
        for name, work in ((_FOLLOW, self._follow), ("leases", self._check_leases), ("notes", self._send_notes)):
            self._tasks.append(asyncio.create_task(self._keep(name, work), name=f"redis:{name}"))

    async def close(self) -> None:
        """Stop, and close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in (self._reader, self._client):
            with suppress(RedisError, OSError):
                await client.aclose()

    def note(self, note: PlacementNote) -> None:
        """Tell the other routers what was sent where. Never waits; the oldest notes are dropped while Redis is away."""
        if self.is_up:
            self._notes.append(note)  # its pages' hashes may be still to be made
            self._noted.set()

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            heed_cancellation()  # also one that got lost in work which then came to a good end
            try:
                await work()
            except ResponseError as error:
                heed_cancellation()
                self._note_refusal(name, error)
            except (RedisError, OSError, TimeoutError) as error:
                heed_cancellation()
                self._note_silence(name, error)
            except Exception:  # noqa: BLE001  the outermost frame of this loop: serving goes on without Redis
                heed_cancellation()
                _log.exception("redis_task_failed", task=name)
                self._positions.clear()
            else:
                self._refused.discard(name)
                backoff_s = _FIRST_BACKOFF_S
                continue
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    def _note_silence(self, name: str, error: Exception) -> None:
        """Redis does not answer, or does not let us in. Said once."""
        self.is_up = False
        self._positions.clear()  # entries may have been missed: start over from a scan
        if not self._is_down_told:
            self._is_down_told = True
            _log.warning("redis_down", task=name, error=type(error).__name__)

    def _note_refusal(self, name: str, error: ResponseError) -> None:
        """Redis is there and says no: a right is missing, its memory is full, or a key is not ours. Said once."""
        if name not in self._refused:
            self._refused.add(name)
            _log.warning("redis_refused", task=name, error=type(error).__name__)
        if name == _FOLLOW:
            self.is_up = False
            self._positions.clear()

    def _answered(self) -> None:
        if not self.is_up and self._positions:
            self.is_up = True
            self._is_down_told = False
            _log.info("redis_up")

    async def _follow(self) -> None:
        """Read what is new in all streams. The first time, note where they end before leases are scanned."""
        if not self._positions:
            self._page_streams.clear()
            positions: _Positions = {}
            for stream in (self._keys.fleet, self._keys.placements):
                positions[stream] = await self._last_id(stream)
            leases = [key async for key in self._reader.scan_iter(match=self._keys.lease_pattern, count=1000)]
            await self._read_leases([_text(key).removeprefix(self._keys.lease("")) for key in leases])
            self._positions = positions
        await self._watch_pages()
        # Not before something was read is it up; so the first time nothing is waited for.
        block_ms = _BLOCK_MS if self.is_up else None
        answer = await self._reader.xread(dict(self._positions), count=_MAX_ENTRIES, block=block_ms)
        self._answered()
        for name, entries in cast("_Streams", answer):
            stream = _text(name)
            for entry_id, fields in entries:
                if stream in self._positions:
                    self._positions[stream] = entry_id
                await self._take(stream, fields)

    async def _last_id(self, stream: str) -> bytes | str:
        newest = await self._reader.xrevrange(stream, count=1)
        return cast("bytes", newest[0][0]) if newest else "0-0"

    async def _watch_pages(self) -> None:
        """Follow the page streams of the engines at hand, from now on: their snapshots hold what came before."""
        wanted = {self._keys.pages(engine.engine_id, engine.epoch): engine.engine_id for engine in self._fleet.engines}
        for stream in self._page_streams.keys() - wanted.keys():
            del self._page_streams[stream]
            self._positions.pop(stream, None)
        for stream in wanted.keys() - self._page_streams.keys():
            self._page_streams[stream] = wanted[stream]
            self._positions[stream] = await self._last_id(stream)

    async def _take(self, stream: str, fields: _Fields) -> None:
        if stream == self._keys.fleet:
            engine_id = _text(fields.get(Entry.ENGINE_ID.encode(), b""))
            await self._read_leases([engine_id])
        elif stream == self._keys.placements:
            self._take_note(fields)
        elif stream in self._page_streams:
            events = _decoded(engine_pb2.PageEvents, fields.get(Entry.EVENTS.encode()))
            if events is not None:
                self._fleet.hint_pages(self._page_streams[stream], events)

    def _take_note(self, fields: _Fields) -> None:
        note = _note_of(fields)
        if note is None:
            _log.debug("placement_note_ignored")
        elif note.router_id != self._router_id:
            self._fleet.hint_placement(note)

    async def _check_leases(self) -> None:
        await self._read_leases(list(self._seen_at))
        await asyncio.sleep(_LEASE_CHECK_S)

    async def _read_leases(self, engine_ids: Sequence[str]) -> None:
        valid = [engine_id for engine_id in engine_ids if _ENGINE_ID.fullmatch(engine_id)]
        if not valid:
            return
        async with self._client.pipeline(transaction=False) as pipeline:
            for engine_id in valid:
                pipeline.hgetall(self._keys.lease(engine_id))
            for engine_id, fields in zip(valid, await pipeline.execute(), strict=True):
                self._take_lease(engine_id, fields)

    def _take_lease(self, engine_id: str, fields: _Fields) -> None:
        now = time.monotonic()
        model = fields.get(Lease.MODEL.encode())
        if model is not None and model != self._fleet.model_name.encode():
            # A router of its model looks after it. Should it come to serve ours, it joins again, with a notice.
            self._fleet.forgotten(engine_id)
            self._seen_at.pop(engine_id, None)
            return
        if not fields:
            self._fleet.forgotten(engine_id)
            # It may come back without a notice, when Redis lost its data: so ask for it a while longer.
            if now - self._seen_at.get(engine_id, 0.0) > _REMEMBER_S:
                self._seen_at.pop(engine_id, None)
            return
        address = _text(fields.get(Lease.ADDRESS.encode(), b""))
        epoch = _number(fields.get(Lease.EPOCH.encode()))
        if epoch is None or not _ADDRESS.fullmatch(address):
            _log.debug("lease_ignored")
            return
        self._seen_at[engine_id] = now
        self._fleet.discovered(engine_id, address)
        load = _decoded(engine_pb2.Load, fields.get(Lease.LOAD.encode()))
        if load is not None:
            self._fleet.hint_load(engine_id, epoch, load)

    async def _send_notes(self) -> None:
        await self._noted.wait()
        self._noted.clear()
        async with self._client.pipeline(transaction=False) as pipeline:
            while self._notes:
                note = self._notes.popleft()
                pipeline.xadd(
                    self._keys.placements,
                    {
                        Entry.ROUTER_ID: self._router_id,
                        Entry.ENGINE_ID: note.engine_id,
                        Entry.STREAM_ID: note.stream_id,
                        Entry.TOKENS: note.tokens,
                        Entry.SEQUENCES: note.num_sequences,
                        Entry.OUTPUT: note.output_tokens,
                        Entry.HASHES: array("Q", note.pages[:_MAX_NOTE_PAGES]).tobytes(),
                    },
                    maxlen=redis_keys.PLACEMENTS_MAXLEN,
                    approximate=True,
                )
            pipeline.pexpire(self._keys.placements, redis_keys.PLACEMENTS_TTL_MS)
            await pipeline.execute()


def _text(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        return ""


def _number(raw: bytes | None) -> int | None:
    return int(raw) if raw is not None and raw.isdigit() and len(raw) <= 20 else None


def _note_of(fields: _Fields) -> PlacementNote | None:
    """Return a placement note; None if it makes no sense."""
    stream_id, tokens, num_sequences = (
        _number(fields.get(each.encode())) for each in (Entry.STREAM_ID, Entry.TOKENS, Entry.SEQUENCES)
    )
    packed = fields.get(Entry.HASHES.encode(), b"")
    if stream_id is None or tokens is None or num_sequences is None or len(packed) % 8:
        return None
    output_tokens = _number(fields.get(Entry.OUTPUT.encode())) or 0
    if (
        max(tokens, output_tokens) > _MAX_NOTE_TOKENS
        or num_sequences > _MAX_NOTE_SEQUENCES
        or len(packed) > 8 * _MAX_NOTE_PAGES
    ):
        return None
    return PlacementNote(
        engine_id=_text(fields.get(Entry.ENGINE_ID.encode(), b"")),
        router_id=_text(fields.get(Entry.ROUTER_ID.encode(), b"")),
        stream_id=stream_id,
        tokens=tokens,
        pages=array("Q", packed),
        num_sequences=num_sequences,
        output_tokens=output_tokens,
    )


def _decoded(kind: type[_M], raw: bytes | None) -> _M | None:
    if raw is None:
        return None
    try:
        return kind.FromString(raw)
    except DecodeError:
        _log.debug("redis_message_ignored", kind=kind.__name__)
        return None
