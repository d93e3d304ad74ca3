"""The layout of Octavo's data in Redis. Engines write, routers read; nothing here is needed for a correct answer.

    {prefix}engine:{id}         HASH    lease and newest load of an engine; expires when the engine stops renewing it
    {prefix}fleet               STREAM  join, leave and drain notices: one blocking read wakes every router
    {prefix}pages:{id}:{epoch}  STREAM  PageEvents messages of one engine process; expires with it
    {prefix}placements          STREAM  what routers dispatched where, so that all see work in flight

Field names of the lease hash are in `Lease`; those of stream entries in `Entry`. Every key is bounded in length and
in the size of its entries, and expires when nobody writes it any more. Redis 6.2 and Valkey know all commands used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LEASE_TTL_MS: Final = 1500
LEASE_PERIOD_S: Final = 0.4
PAGES_TTL_MS: Final = 60_000
PAGES_MAXLEN: Final = 4096
PAGES_MAX_ENTRY_BYTES: Final = 1 << 16
FLEET_TTL_MS: Final = 3_600_000
FLEET_MAXLEN: Final = 10_000
PLACEMENTS_TTL_MS: Final = 60_000
PLACEMENTS_MAXLEN: Final = 10_000  # many times what routers read behind


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """Key names under one prefix, such as "octavo:"."""

    prefix: str = "octavo:"

    def lease(self, engine_id: str) -> str:
        """Return the key of an engine's lease."""
        return f"{self.prefix}engine:{engine_id}"

    @property
    def lease_pattern(self) -> str:
        """Pattern of all lease keys, for SCAN at start-up."""
        return f"{self.prefix}engine:*"

    @property
    def fleet(self) -> str:
        """Stream of join, leave and drain notices."""
        return f"{self.prefix}fleet"

    def pages(self, engine_id: str, epoch: int) -> str:
        """Return the key of an engine process's page-event stream."""
        return f"{self.prefix}pages:{engine_id}:{epoch}"

    @property
    def placements(self) -> str:
        """Stream of placement notes."""
        return f"{self.prefix}placements"


class Lease:
    """Fields of the lease hash."""

    ADDRESS: Final = "address"
    EPOCH: Final = "epoch"
    MODEL: Final = "model"
    LOAD: Final = "load"  # serialized octavo.v1.Load


class Entry:
    """Fields of stream entries."""

    KIND: Final = "kind"  # fleet: "join", "leave" or "drain"
    ENGINE_ID: Final = "engine"
    EVENTS: Final = "events"  # pages: serialized octavo.v1.PageEvents
    ROUTER_ID: Final = "router"
    STREAM_ID: Final = "stream"  # placements: number of the request on that router's link
    TOKENS: Final = "tokens"  # placements: uncached prompt tokens
    SEQUENCES: Final = "sequences"  # placements: choices of the request
    OUTPUT: Final = "output"  # placements: output tokens that are expected of them
    HASHES: Final = "hashes"  # placements: little-endian u64 short hashes of the prompt's new pages
