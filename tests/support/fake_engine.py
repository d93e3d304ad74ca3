"""A scripted engine over real gRPC: answers Link, Describe and PageSnapshot, and does what a test tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from operator import xor
from typing import Any

import grpc
import redis.asyncio as aioredis
from octavo import page_hash
from octavo.redis_client import heed_cancellation
from octavo.redis_keys import LEASE_TTL_MS, Entry, Lease, RedisKeys
from octavo.v1 import engine_pb2, engine_pb2_grpc, types_pb2

PAGE_SIZE = 4
_HEARTBEAT_S = 0.1
_LEASE_PERIOD_S = 0.2

Script = Callable[[engine_pb2.Submit, int], Sequence[int]]


def count_up(first: int = 10) -> Script:
    """Return a script whose output depends on position, seed and choice alone, as a real engine's does."""

    def script(submit: engine_pb2.Submit, choice: int) -> Sequence[int]:
        offset = (submit.sampling.seed + choice) % 97
        return [first + (7 * position + offset) % 200 for position in range(submit.sampling.max_tokens)]

    return script


def say(token_ids: Sequence[int]) -> Script:
    """Return a script that gives these ids, whatever is asked."""
    return lambda _submit, _choice: token_ids


class _Broken(Exception):
    """A link has to break."""


@dataclass(eq=False)
class _Link:
    write: Callable[[engine_pb2.LinkResponse], Any]
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    credits: dict[int, int] = field(default_factory=dict)
    cancelled: dict[int, set[int]] = field(default_factory=dict)  # choices by stream id


class FakeEngine(engine_pb2_grpc.EngineServiceServicer):
    """Set the public attributes at any time; `until` waits for what a test wants to see."""

    def __init__(
        self,
        engine_id: str,
        *,
        tokenizer_revision: str,
        model_revision: str = "r1",
        model_name: str = "tiny",
        max_model_len: int = 4096,
        caches: bool = True,
        **kind: str,
    ) -> None:
        self.engine_id = engine_id
        self.epoch = time.time_ns()
        self.script: Script = count_up()
        self.hold_at: int | None = None  # output position that no stream passes until `release`
        self.silent = False  # says nothing at all, like a process that was stopped
        self.rejection: engine_pb2.Rejected | None = None
        self.end_with: types_pb2.FinishReason.ValueType | None = None  # ends every stream at `hold_at` so
        self.leaves = 0  # so many requests that come find the engine about to stop: it ends the link in order
        self.says_that_it_leaves = False
        self.breaks_its_link = False  # it aborts the link at a request, as a bug in a front would
        self.load = engine_pb2.Load(pages_free=1000)
        self.submits: list[engine_pb2.Submit] = []
        self.cancels: list[int] = []
        self.choice_cancels: list[tuple[int, int]] = []
        self.num_hellos = 0
        self.num_credits = 0
        self.num_snapshots = 0
        self.num_written = 0
        self.address = ""
        self.resident: dict[int, None] = {}
        self.page_sequence = 0
        self._model = types_pb2.ModelInfo(
            name=model_name,
            revision=model_revision,
            tokenizer_revision=tokenizer_revision,
            max_model_len=max_model_len,
            vocab_size=512,
            page_size=PAGE_SIZE,
            eos_token_ids=[2],
        )
        self._root = page_hash.root_hash(
            model_revision=model_revision, tokenizer_revision=tokenizer_revision, page_size=PAGE_SIZE
        )
        self._caches = caches
        self._kind = {"backend": "torch", "device": "cpu", "dtype": "float32", "numerics": "exact"} | kind
        self._links: set[_Link] = set()
        self._released = asyncio.Event()
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._lease: asyncio.Task[None] | None = None
        self._step_id = 0

    @property
    def num_links(self) -> int:
        return len(self._links)

    async def start(self, listen: str = "127.0.0.1:0") -> str:
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        engine_pb2_grpc.add_EngineServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(listen)
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        return self.address

    async def kill(self) -> None:
        """Break every connection, like a process that died: no end, no notice, the lease runs out."""
        if self._lease is not None:
            self._lease.cancel()
            await asyncio.gather(self._lease, return_exceptions=True)
            self._lease = None
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def until(self, reached: Callable[[], bool], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    def release(self) -> None:
        """Let the streams pass `hold_at`."""
        self.hold_at = None
        self._wake()

    def end_held(self, reason: types_pb2.FinishReason.ValueType) -> None:
        """End the streams that stand at `hold_at`, and those that come to it."""
        self.end_with = reason
        self._wake()

    def _wake(self) -> None:
        self._released.set()
        self._released = asyncio.Event()  # a later hold holds again

    async def announce(self, url: str, prefix: str) -> None:
        """Hold a lease in Redis, and tell the fleet."""
        client = aioredis.Redis.from_url(url)
        keys = RedisKeys(prefix)
        await self._renew(client, keys)
        await client.xadd(keys.fleet, {Entry.KIND: "join", Entry.ENGINE_ID: self.engine_id})

        async def hold() -> None:
            try:
                while True:
                    await asyncio.sleep(_LEASE_PERIOD_S)
                    try:
                        await self._renew(client, keys)
                    except (aioredis.RedisError, OSError):
                        heed_cancellation()
            finally:
                with suppress(aioredis.RedisError, OSError):
                    await client.aclose()

        self._lease = asyncio.create_task(hold())

    async def send_pages(self, stored: Sequence[int], evicted: Sequence[int] = (), *, lose: bool = False) -> None:
        """Change the prefix cache; `lose` keeps the event to itself, as a broken network would."""
        self.resident.update(dict.fromkeys(stored))
        for page in evicted:
            self.resident.pop(page, None)
        self.page_sequence += 1
        events = engine_pb2.PageEvents(
            epoch=self.epoch,
            sequence=self.page_sequence,
            stored=stored,
            evicted=evicted,
            digest=reduce(xor, self.resident, 0),
            num_resident=len(self.resident),
        )
        if not lose:
            for link in list(self._links):
                await link.write(engine_pb2.LinkResponse(pages=events))

    async def send_load(self) -> None:
        for link in list(self._links):
            await link.write(engine_pb2.LinkResponse(load=self.load))

    # The service.

    async def Describe(self, _request, _context):  # noqa: N802
        return engine_pb2.DescribeResponse(engine=self._info(), load=self.load)

    async def PageSnapshot(self, _request, _context):  # noqa: N802
        self.num_snapshots += 1
        self._changed.set()
        return engine_pb2.PageSnapshotResponse(
            epoch=self.epoch,
            sequence=self.page_sequence,
            hashes=list(self.resident),
            digest=reduce(xor, self.resident, 0),
        )

    async def Link(self, request_iterator, context):  # noqa: N802
        lock = asyncio.Lock()

        async def write(message: engine_pb2.LinkResponse) -> None:
            if not self.silent:
                async with lock:
                    await context.write(message)

        link = _Link(write)
        first = await anext(aiter(request_iterator))
        assert first.HasField("hello")
        self.num_hellos += 1
        welcome = engine_pb2.Welcome(engine=self._info(), load=self.load)
        await write(engine_pb2.LinkResponse(welcome=welcome))
        self._links.add(link)
        self._changed.set()
        heartbeat = asyncio.create_task(self._heartbeats(link))
        try:
            await self._serve(link, request_iterator)
        except _Broken:
            await context.abort(grpc.StatusCode.INTERNAL, "the link failed inside the engine")
        finally:
            self._links.discard(link)
            tasks = [heartbeat, *link.tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._changed.set()

    async def _serve(self, link: _Link, requests: AsyncIterator[engine_pb2.LinkRequest]) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "submit":
                submit = request.submit
                self.submits.append(submit)
                if self.breaks_its_link:
                    raise _Broken
                if self.leaves:
                    self.leaves -= 1
                    await link.write(engine_pb2.LinkResponse(load=engine_pb2.Load(draining=self.says_that_it_leaves)))
                    return
                link.tasks[submit.stream_id] = asyncio.create_task(self._run(link, submit))
            elif kind == "cancel" and request.cancel.choices:
                await self._cancel_choices(link, request.cancel)
            elif kind == "cancel":
                self.cancels.append(request.cancel.stream_id)
                task = link.tasks.pop(request.cancel.stream_id, None)
                if task is not None:
                    task.cancel()
            elif kind == "credit":
                link.credits[request.credit.stream_id] = request.credit.max_output_tokens
                self.num_credits += 1
            self._changed.set()

    async def _cancel_choices(self, link: _Link, cancel: engine_pb2.Cancel) -> None:
        link.cancelled.setdefault(cancel.stream_id, set()).update(cancel.choices)
        self.choice_cancels += [(cancel.stream_id, choice) for choice in cancel.choices]
        reason = types_pb2.FINISH_REASON_CANCELLED
        ends = [
            engine_pb2.ChoiceEnd(stream_id=cancel.stream_id, choice=choice, reason=reason) for choice in cancel.choices
        ]
        await link.write(engine_pb2.LinkResponse(step=self._step(ends=ends)))

    async def _run(self, link: _Link, submit: engine_pb2.Submit) -> None:
        if self.rejection is not None:
            rejected = engine_pb2.Rejected()
            rejected.CopyFrom(self.rejection)
            rejected.stream_id = submit.stream_id
            await link.write(engine_pb2.LinkResponse(rejected=rejected))
            return
        cached = await self._cache(submit)
        started = engine_pb2.Started(stream_id=submit.stream_id, cached_tokens=cached, queue_ns=5, at_ns=time.time_ns())
        await link.write(engine_pb2.LinkResponse(step=self._step(started=[started])))
        choices = range(submit.sampling.n)
        finished = [index < len(submit.committed) and submit.committed[index].finished for index in choices]
        room = self._model.max_model_len - len(submit.prompt_token_ids)
        outputs = [list(self.script(submit, choice))[: min(submit.sampling.max_tokens, room)] for choice in choices]
        positions = [len(submit.committed[index].token_ids) if submit.committed else 0 for index in choices]
        while not all(finished):
            running = [position for position, is_over in zip(positions, finished, strict=True) if not is_over]
            if not await self._may_go_on(link, submit, min(running)):
                return
            await asyncio.sleep(0)  # one token a turn, as a step gives
            for choice in link.cancelled.get(submit.stream_id, ()):
                finished[choice] = True
            await link.write(self._one_step(submit, outputs, positions, finished))
            self.num_written += 1
            self._changed.set()

    def _one_step(
        self, submit: engine_pb2.Submit, outputs: list[list[int]], positions: list[int], finished: list[bool]
    ) -> engine_pb2.LinkResponse:
        step = self._step()
        for choice, output in enumerate(outputs):
            if finished[choice]:
                continue
            position = positions[choice]
            if position < len(output):
                step.stream_ids.append(submit.stream_id)
                step.choices.append(choice)
                step.positions.append(position)
                step.token_ids.append(output[position])
                step.logprobs.append(-0.5)
                positions[choice] += 1
            is_eos = position < len(output) and output[position] == 2 and not submit.sampling.ignore_eos
            if is_eos or positions[choice] >= len(output):
                finished[choice] = True
                reason = types_pb2.FINISH_REASON_STOP if is_eos else types_pb2.FINISH_REASON_LENGTH
                step.ends.add(
                    stream_id=submit.stream_id,
                    choice=choice,
                    reason=reason,
                    stop_token_id=2 if is_eos else None,
                    timing=types_pb2.EngineTiming(queue_ns=1, prefill_ns=2, decode_ns=3),
                )
        return engine_pb2.LinkResponse(step=step)

    async def _may_go_on(self, link: _Link, submit: engine_pb2.Submit, position: int) -> bool:
        while position >= link.credits.get(submit.stream_id, position + 1):
            self._changed.clear()
            await self._changed.wait()
        while self.hold_at is not None and position >= self.hold_at:
            if self.end_with is not None:
                end = engine_pb2.ChoiceEnd(stream_id=submit.stream_id, reason=self.end_with, error="scripted")
                await link.write(engine_pb2.LinkResponse(step=self._step(ends=[end])))
                return False
            self._changed.set()
            await self._released.wait()
        return True

    async def _cache(self, submit: engine_pb2.Submit) -> int:
        root = page_hash.salted_root(self._root, submit.cache_salt)
        pages = [
            page_hash.short_hash(each) for each in page_hash.prefix_hashes(root, submit.prompt_token_ids, PAGE_SIZE)
        ]
        reusable = (len(submit.prompt_token_ids) - 1) // PAGE_SIZE
        num_cached = 0
        while num_cached < reusable and pages[num_cached] in self.resident:
            num_cached += 1
        if any(page not in self.resident for page in pages):
            await self.send_pages([page for page in pages if page not in self.resident])
        return num_cached * PAGE_SIZE

    async def _heartbeats(self, link: _Link) -> None:
        while True:
            heartbeat = engine_pb2.Heartbeat(
                time_ns=time.time_ns(), step_id=self._step_id, num_requests=len(link.tasks), load=self.load
            )
            await link.write(engine_pb2.LinkResponse(heartbeat=heartbeat))
            await asyncio.sleep(_HEARTBEAT_S)

    async def _renew(self, client: aioredis.Redis, keys: RedisKeys) -> None:
        lease = keys.lease(self.engine_id)
        async with client.pipeline(transaction=False) as pipeline:
            pipeline.hset(
                lease,
                mapping={
                    Lease.ADDRESS: self.address,
                    Lease.EPOCH: self.epoch,
                    Lease.MODEL: self._model.name,
                    Lease.LOAD: self.load.SerializeToString(),
                },
            )
            pipeline.pexpire(lease, LEASE_TTL_MS)
            await pipeline.execute()

    def _info(self) -> engine_pb2.EngineInfo:
        return engine_pb2.EngineInfo(
            engine_id=self.engine_id,
            epoch=self.epoch,
            model=self._model,
            num_pages=1000,
            **self._kind,
            page_hash_root=self._root if self._caches else b"",
        )

    def _step(self, **fields: Any) -> engine_pb2.StepBatch:
        self._step_id += 1
        self.load.step_id = self._step_id
        now = time.time_ns()
        return engine_pb2.StepBatch(step_id=self._step_id, started_ns=now, ended_ns=now, **fields)
