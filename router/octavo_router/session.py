"""One stream between this router and one engine, from hello to its end.

Stream ids and attempts belong to a session: nothing that an older session or another engine process sends can enter.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, Protocol

import grpc
import structlog
from octavo.errors import InternalError
from octavo.v1 import engine_pb2, engine_pb2_grpc

from octavo_router.attempt import ENGINE_LEFT, ENGINE_SILENT, ENGINE_STALLED, Attempt
from octavo_router.liveness import SILENT, LinkState, LinkTimes, Liveness
from octavo_router.step_columns import tokens_of
from octavo_router.wakeups import Wakeups

_log = structlog.get_logger("octavo.router.link")

PROTOCOL_VERSION: Final = 1
_WATCH_PERIOD_S: Final = 0.1
_MAX_OUTBOX: Final = 65_536
_SNAPSHOT_PAUSE_S: Final = 0.2
_LOCAL_ERROR: Final = "Internal error from Core"  # details that grpc.aio makes up
ENDED_UNDER_WRITE: Final = "ended_under_write"
"""Reason: the stream ended while it was written to; grpc.aio then forgets what the engine had said."""
_ORDERLY_ENDS: Final = frozenset({"closed", ENDED_UNDER_WRITE})
# Only keepalive together with the ping timeout notices a peer that hangs without closing its socket.
CHANNEL_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
)


class SessionOwner(Protocol):
    """What a session tells the link that it belongs to."""

    def session_opened(self, session: LinkSession, welcome: engine_pb2.Welcome) -> bool:
        """The engine said welcome; False refuses it."""

    def session_judged(self, state: LinkState) -> None:
        """How far the engine can be relied on now."""

    def session_load(self, load: engine_pb2.Load) -> None:
        """A load report came."""

    def session_pages(self, events: engine_pb2.PageEvents) -> None:
        """Page events came."""

    def session_snapshot(self, snapshot: engine_pb2.PageSnapshotResponse) -> None:
        """The snapshot that was asked for came."""

    def session_closed(self, session: LinkSession) -> None:
        """The stream is gone."""


_Call = grpc.aio.StreamStreamCall[engine_pb2.LinkRequest, engine_pb2.LinkResponse]


class LinkSession:
    """One stream. `run` keeps it; the rest may be called on the same event loop while it runs."""

    def __init__(
        self, address: str, *, router_id: str, owner: SessionOwner, times: LinkTimes, wakeups: Wakeups
    ) -> None:
        self.attempts: dict[int, Attempt] = {}
        self.snapshot_wanted = asyncio.Event()
        self.liveness = Liveness(times, time.monotonic())
        self.was_welcome = False
        self.is_superseded = False
        self._address = address
        self._owner = owner
        self._router_id = router_id
        self._times = times
        self._wakeups = wakeups
        self._outbox: deque[engine_pb2.LinkRequest] = deque()
        self._outbox_filled = asyncio.Event()
        self._next_stream_id = 1

    async def run(self) -> str:
        """Return why the stream ended."""
        async with grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            call: _Call = stub.Link()
            reason = "failed"
            try:
                reason = await self._converse(stub, call)
            finally:
                call.cancel()
                self._owner.session_closed(self)
                self._give_back(reason)
            return reason

    async def _converse(self, stub: engine_pb2_grpc.EngineServiceAsyncStub, call: _Call) -> str:
        try:
            async with asyncio.timeout(self._times.connect_s):
                welcome = await self._greet(call)
            if welcome is None or not self._owner.session_opened(self, welcome):
                return "refused"
            self.was_welcome = True
            return await _first_of(self._read(call), self._write(call), self._watch(), self._fetch_snapshots(stub))
        except InternalError as error:  # the engine sends what cannot be
            _log.error("engine_makes_no_sense", address=self._address, reason=error.reason, message=error.message)
            return error.reason
        except TimeoutError:
            return "no_welcome"
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            return reason_of(error)

    def _give_back(self, reason: str) -> None:
        """Tell the attempts that the stream has ended."""
        attempts = list(self.attempts.values())
        self.attempts.clear()
        is_orderly = reason in _ORDERLY_ENDS
        for attempt in attempts:
            if (
                is_orderly and self.liveness.is_draining
            ):  # what it took it has handed over by itself: it never took this
                attempt.hand_over()
            else:
                attempt.lose(ENGINE_LEFT if is_orderly else "engine_lost")

    def submit(self, message: engine_pb2.LinkRequest, attempt: Attempt) -> int:
        """Send a `submit` under a new stream id."""
        stream_id = message.submit.stream_id = self._next_stream_id
        self._next_stream_id += 1
        self.attempts[stream_id] = attempt
        self._send(message)
        return stream_id

    def cancel(self, stream_id: int, attempt: Attempt) -> None:
        """Give a request up; what still comes for it is dropped. Does nothing for one that is over."""
        if self.attempts.get(stream_id) is attempt:
            del self.attempts[stream_id]
            self._send(engine_pb2.LinkRequest(cancel=engine_pb2.Cancel(stream_id=stream_id)))

    def cancel_choice(self, stream_id: int, attempt: Attempt, choice: int) -> None:
        """Give one choice up; its end still comes. Does nothing for a request that is over."""
        if self.attempts.get(stream_id) is attempt:
            cancel = engine_pb2.Cancel(stream_id=stream_id, choices=[choice])
            self._send(engine_pb2.LinkRequest(cancel=cancel))

    def credit(self, stream_id: int, attempt: Attempt, max_output_tokens: int) -> None:
        """Let a request run this far in all."""
        if self.attempts.get(stream_id) is attempt:
            credit = engine_pb2.Credit(stream_id=stream_id, max_output_tokens=max_output_tokens)
            self._send(engine_pb2.LinkRequest(credit=credit))

    def _send(self, message: engine_pb2.LinkRequest) -> None:
        self._outbox.append(message)
        self._outbox_filled.set()

    async def _greet(self, call: _Call) -> engine_pb2.Welcome | None:
        hello = engine_pb2.Hello(router_id=self._router_id, protocol_version=PROTOCOL_VERSION, page_events=True)
        await call.write(engine_pb2.LinkRequest(hello=hello))
        message = await call.read()
        if isinstance(message, engine_pb2.LinkResponse) and message.HasField("welcome"):
            self.liveness = Liveness(self._times, time.monotonic())
            self._note_load(message.welcome.load)
            return message.welcome
        await call.code()  # a stream that ended with a status raises nothing by itself
        return None

    async def _read(self, call: _Call) -> str:
        while True:
            message = await call.read()
            if not isinstance(message, engine_pb2.LinkResponse):
                return "closed"
            self.liveness.heard(time.monotonic())
            self._dispatch(message)

    def _dispatch(self, message: engine_pb2.LinkResponse) -> None:
        kind = message.WhichOneof("message")
        if kind == "step":
            self._step(message.step)
        elif kind == "heartbeat":
            self._heartbeat(message.heartbeat)
        elif kind == "load":
            self._load(message.load)
        elif kind == "pages":
            self._owner.session_pages(message.pages)
        elif kind == "rejected":
            attempt = self.attempts.pop(message.rejected.stream_id, None)
            if attempt is not None:
                attempt.refused(message.rejected)

    def _step(self, step: engine_pb2.StepBatch) -> None:
        tokens = tokens_of(step)  # before anything is taken from a batch that makes no sense
        self.liveness.stepped(step.step_id)
        for started in step.started:
            attempt = self.attempts.get(started.stream_id)
            if attempt is not None:
                attempt.started(started)
        at_ns = step.ended_ns
        attempts, due, closed = self.attempts, set(), set()
        for stream_id, choice, position, token_id, logprob in tokens:
            attempt = attempts.get(stream_id)
            if attempt is not None:
                attempt.token(choice, position, token_id, logprob, at_ns)
                due.add(attempt)
                if attempt.over is not None:
                    closed.add(stream_id)
        self._wakeups.soon(due)
        for end in step.ends:
            attempt = attempts.get(end.stream_id)
            if attempt is not None:
                attempt.ended(end)
                closed.add(end.stream_id)
        self._sweep(closed)

    def _sweep(self, stream_ids: set[int]) -> None:
        """Let go of attempts that are over; an engine that does not know that is told."""
        for stream_id in stream_ids:
            attempt = self.attempts[stream_id]
            if attempt.is_open:
                continue
            if attempt.over is not None:
                self.cancel(stream_id, attempt)
            else:
                del self.attempts[stream_id]

    def _heartbeat(self, heartbeat: engine_pb2.Heartbeat) -> None:
        self.liveness.beat(heartbeat.step_id, num_requests=heartbeat.num_requests)
        if heartbeat.HasField("load"):
            self._load(heartbeat.load)

    def _load(self, load: engine_pb2.Load) -> None:
        self._note_load(load)
        self._owner.session_load(load)
        self.judge()
        if load.stalled:  # the front lives, so the stream stays: if the core wakes up, it finds its requests cancelled
            self._lose_all(ENGINE_STALLED)

    def _note_load(self, load: engine_pb2.Load) -> None:
        self.liveness.loaded(draining=load.draining, stalled=load.stalled)

    def _lose_all(self, reason: str) -> None:
        for attempt in self.attempts.values():
            attempt.lose(reason)

    def judge(self) -> None:
        """Tell the link how far the engine can be relied on now."""
        self._owner.session_judged(self.liveness.state(time.monotonic()))

    async def _write(self, call: _Call) -> str:
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            if len(self._outbox) > _MAX_OUTBOX:
                return "outbox_full"
            while self._outbox:
                try:
                    await call.write(self._outbox.popleft())
                except asyncio.InvalidStateError:  # it has ended: the reader says why
                    await asyncio.Event().wait()
                if len(self._outbox) > _MAX_OUTBOX:
                    return "outbox_full"

    async def _watch(self) -> str:
        while True:
            looked_at = time.monotonic()
            await asyncio.sleep(_WATCH_PERIOD_S)
            if self.is_superseded:
                return "superseded"
            now = time.monotonic()
            if now - looked_at > self._times.suspect_s / 2:
                continue  # this process was late itself: what the engine sent meanwhile is still unread
            end = self.liveness.end(now)
            if end == SILENT:
                self._lose_all(ENGINE_SILENT)
            if end is not None:
                return end
            self.judge()

    async def _fetch_snapshots(self, stub: engine_pb2_grpc.EngineServiceAsyncStub) -> str:
        while True:
            await self.snapshot_wanted.wait()
            self.snapshot_wanted.clear()
            try:
                request = engine_pb2.PageSnapshotRequest()
                snapshot = await stub.PageSnapshot(request, timeout=self._times.connect_s)
                self._owner.session_snapshot(snapshot)
            except grpc.RpcError as error:
                _log.warning("snapshot_failed", address=self._address, reason=reason_of(error))
                self.snapshot_wanted.set()
            await asyncio.sleep(_SNAPSHOT_PAUSE_S)


async def _first_of(*coroutines: Coroutine[Any, Any, str]) -> str:
    """Run all until one ends; return its result or raise its error, the first's of several. The others are cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def reason_of(error: BaseException) -> str:
    """Return one word for why a stream ended."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return type(error).__name__
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == _LOCAL_ERROR:
        return ENDED_UNDER_WRITE
    return str(error.code().name).lower()
