"""Connections to Redis that fail fast: nothing waits for it, and whoever needs it tries again by itself."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from octavo.redis_url import RedisPlace, Tls, parse_redis_url

TIMEOUT_S: Final = 0.25


def connect(url: str, *, timeout_s: float = TIMEOUT_S, max_connections: int | None = None) -> Redis:
    """Return a client of the Redis at `url`; it dials when first used.

    Args:
        url: see `octavo.redis_url`.
        timeout_s: longest wait for an answer; a blocking read needs more than it blocks.
        max_connections: most connections at once; None for no limit.

    Raises:
        ValueError: the URL is malformed.
    """
    place = parse_redis_url(url)
    options = {
        **_transport(place, timeout_s),
        "username": place.username,
        "password": place.password,
        "db": place.database,
        "max_connections": max_connections,
    }
    if place.service is not None:
        return _master(place, place.service, timeout_s, options)
    if place.socket_path is not None:
        return Redis(unix_socket_path=place.socket_path, **options)
    ((host, port),) = place.hosts
    return Redis(host=host, port=port, **options)


def heed_cancellation() -> None:
    """Raise a cancellation of this task that got lost. For loops that ask Redis, catch its errors and go on.

    A connection that breaks while its user is cancelled may raise its own error in place of the cancellation, or none.

    Raises:
        CancelledError: the task has been cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class _SentinelRedis(Redis):
    """A client of the master that sentinels name; it asks them with every new connection, and closes them with itself."""

    sentinels: Sentinel

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001  as in the base
        try:
            await super().aclose(close_connection_pool)
        finally:
            await self.sentinels.aclose()


def _master(place: RedisPlace, service: str, timeout_s: float, options: dict[str, Any]) -> Redis:
    login = {"username": place.sentinel_username, "password": place.sentinel_password}
    sentinels = Sentinel(place.hosts, sentinel_kwargs=_transport(place, timeout_s) | login, **options)  # type: ignore[no-untyped-call]  # as redis-py has it
    client = sentinels.master_for(service, redis_class=_SentinelRedis)
    assert isinstance(client, _SentinelRedis)  # noqa: S101  it is what was asked for
    client.sentinels = sentinels
    return client


def _transport(place: RedisPlace, timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    return options if place.tls is None else options | _tls(place.tls)


def _tls(tls: Tls) -> dict[str, Any]:
    return {
        "ssl": True,
        "ssl_ca_certs": tls.ca_file,
        "ssl_certfile": tls.certificate_file,
        "ssl_keyfile": tls.key_file,
        "ssl_cert_reqs": "required" if tls.verifies else "none",
        "ssl_check_hostname": tls.checks_hostname,
    }
