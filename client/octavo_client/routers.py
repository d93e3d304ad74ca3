"""The routers that a client knows: a channel to each, and which one is next."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
from octavo.errors import Cancelled, OctavoError, Unavailable, from_rpc_error
from octavo.v1 import inference_pb2_grpc

if TYPE_CHECKING:  # in the stubs only
    from octavo.v1.inference_pb2_grpc import InferenceServiceAsyncStub as Stub

CHANNEL_OPTIONS: Final = (
    # The router resumes a generation by itself; a repeated one would pay for its prompt twice.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    # Each client keeps a connection of its own, so that several of one process spread over several routers.
    ("grpc.use_local_subchannel_pool", 1),
    # A router that hangs without closing its socket is noticed by keepalive together with the ping timeout. Routers
    # allow a ping each second.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    # A router that was restarted is found again soon, and one that takes no connection is given up soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_FIRST_SHUNNED_S: Final = 2.0
_MAX_SHUNNED_S: Final = 30.0
# What a status without details becomes: the transport made it, for nobody is there any more.
_LOSSES: Final = {Unavailable: "unavailable", Cancelled: "cancelled"}

_T = TypeVar("_T")


def is_loss(failure: OctavoError) -> bool:
    """Whether a failure says that the router is gone, and not what a router answered."""
    return _LOSSES.get(type(failure)) == failure.reason


class Router:
    """One address."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.channel = channel
        self.stub: Stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self.shunned_until = 0.0  # monotonic seconds
        self._shunned_s = _FIRST_SHUNNED_S

    def shun(self) -> None:
        """Note that it is gone, or cannot serve: others come first for a while, each time for longer."""
        self.shunned_until = time.monotonic() + self._shunned_s
        self._shunned_s = min(2 * self._shunned_s, _MAX_SHUNNED_S)

    def welcome(self) -> None:
        """Note that it answers."""
        self.shunned_until = 0.0
        self._shunned_s = _FIRST_SHUNNED_S


class Routers:
    """Open channels. Requests take the routers in turn, from a random one on, so that clients spread over them."""

    def __init__(self, targets: Sequence[str], credentials: grpc.ChannelCredentials | None) -> None:
        self._routers = [Router(target, _channel(target, credentials)) for target in targets]
        self._turn = random.randrange(len(targets))  # noqa: S311  # spreads load, hides nothing

    def __len__(self) -> int:
        return len(self._routers)

    async def close(self) -> None:
        """Close all channels; calls that run are cancelled."""
        await asyncio.gather(*(router.channel.close() for router in self._routers))

    def next(self) -> Router:
        """Return the next router that is not shunned; if all are, the one whose time is over first."""
        now = time.monotonic()
        order = [self._routers[(self._turn + offset) % len(self)] for offset in range(len(self))]
        chosen = min(order, key=lambda router: max(now, router.shunned_until))
        self._turn = (self._routers.index(chosen) + 1) % len(self)
        return chosen

    async def ask(self, call: Callable[[Stub], Awaitable[_T]]) -> _T:
        """Make a unary call, at another router if one is gone.

        Raises:
            OctavoError: what a router answered, or that none is there.
        """
        for num_left in reversed(range(len(self))):
            router = self.next()
            try:
                answer = await call(router.stub)
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
                if not is_loss(failure) or num_left == 0:
                    raise failure from None
                router.shun()
            else:
                router.welcome()
                return answer
        raise AssertionError("a client knows at least one router")


def read_targets(target: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses that one string, with commas between them, or a sequence of strings names.

    Raises:
        ValueError: it names none.
    """
    parts = target.split(",") if isinstance(target, str) else target
    targets = tuple(part.strip() for part in parts if part.strip())
    if not targets:
        raise ValueError("name at least one router, as host:port")
    return targets


def _channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
