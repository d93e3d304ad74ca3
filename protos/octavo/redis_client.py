"""Connections to Redis that fail fast: nothing waits for it, and whoever needs it tries again by itself."""

from __future__ import annotations

import asyncio
from typing import Final

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

TIMEOUT_S: Final = 0.25


def connect(url: str, *, timeout_s: float = TIMEOUT_S, max_connections: int | None = None) -> redis.asyncio.Redis:
    """Return a client of the Redis at `url`; it dials when first used.

    Args:
        url: redis://host:port/db.
        timeout_s: longest wait for an answer; a blocking read needs more than it blocks.
        max_connections: most connections at once; None for no limit.
    """
    return redis.asyncio.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        max_connections=max_connections,
    )


def heed_cancellation() -> None:
    """Raise the cancellation of this task that an error hides. For loops that catch the errors of Redis and go on.

    A connection that breaks while its user is cancelled may raise its own error in place of the cancellation.

    Raises:
        CancelledError: the task has been cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
