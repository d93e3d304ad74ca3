"""A process of scripted engines that cost next to nothing: tokens by counting, all sequences of an engine in each step.

    python engine.py --engines 8 --steps-per-s 100 --model MODEL

Says {"addresses": [...]} and serves until its standard input ends. A step sends one StepBatch with one token of every
sequence that has credit left; 0 steps per second means as many as go.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
from octavo.model_directory import resolve_model
from octavo.page_hash import root_hash
from octavo.process import StopRequest, run
from octavo.revision import tokenizer_revision
from octavo.v1 import engine_pb2, engine_pb2_grpc, types_pb2

PAGE_SIZE: Final = 16
_HEARTBEAT_S: Final = 0.1
_FIRST_ID, _NUM_IDS = 1000, 8000  # words of the vocabulary, no special tokens
_ROOT: Final = root_hash(model_revision="r", tokenizer_revision="t", page_size=PAGE_SIZE)


@dataclass(slots=True)
class _Stream:
    position: int
    end: int  # output tokens at which it ends
    credit: int


class CountingEngine(engine_pb2_grpc.EngineServiceServicer):
    """One engine. Every method is gRPC's."""

    def __init__(self, engine_id: str, model: types_pb2.ModelInfo, step_s: float) -> None:
        self._step_s = step_s
        self._info = engine_pb2.EngineInfo(
            engine_id=engine_id,
            epoch=time.time_ns(),
            model=model,
            num_pages=1 << 20,
            backend="torch",
            device="cpu",
            dtype="float32",
            numerics="exact",
            page_hash_root=_ROOT,
        )
        self._step_id = 0
        self._running: dict[int, _Stream] = {}
        self._has_work = asyncio.Event()

    async def PageSnapshot(self, _request: Any, _context: Any) -> engine_pb2.PageSnapshotResponse:  # noqa: N802
        """Hold no pages."""
        return engine_pb2.PageSnapshotResponse(epoch=self._info.epoch)

    async def Generate(  # noqa: N802
        self, request: engine_pb2.EngineServiceGenerateRequest, context: Any
    ) -> None:
        """Answer at once, all tokens in one message."""
        ids = [_token(position) for position in range(request.submit.sampling.max_tokens)]
        chunk = engine_pb2.TokenChunk(token_ids=ids, logprobs=[-0.5] * len(ids))
        await context.write(engine_pb2.EngineServiceGenerateResponse(tokens=chunk))
        end = engine_pb2.ChoiceEnd(reason=types_pb2.FINISH_REASON_LENGTH)
        await context.write(engine_pb2.EngineServiceGenerateResponse(end=end))

    async def Link(self, requests: AsyncIterator[engine_pb2.LinkRequest], context: Any) -> None:  # noqa: N802
        """Serve one router."""
        await anext(aiter(requests))
        await context.write(engine_pb2.LinkResponse(welcome=engine_pb2.Welcome(engine=self._info, load=self._load())))
        lock = asyncio.Lock()  # one message at a time on a stream
        tasks = [asyncio.create_task(self._beat(context, lock)), asyncio.create_task(self._run(context, lock))]
        try:
            async for request in requests:
                self._take(request)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._running.clear()

    def _take(self, request: engine_pb2.LinkRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "submit":
            submit = request.submit
            done = len(submit.committed[0].token_ids) if submit.committed else 0
            end = submit.sampling.max_tokens
            self._running[submit.stream_id] = _Stream(done, end, end)
            self._has_work.set()
        elif kind == "credit" and request.credit.stream_id in self._running:
            self._running[request.credit.stream_id].credit = request.credit.max_output_tokens
            self._has_work.set()
        elif kind == "cancel":
            self._running.pop(request.cancel.stream_id, None)

    async def _run(self, context: Any, lock: asyncio.Lock) -> None:
        due = time.monotonic()
        while True:
            step = self._step()
            if step is None:
                self._has_work.clear()
                await self._has_work.wait()
                due = time.monotonic()
                continue
            async with lock:
                await context.write(engine_pb2.LinkResponse(step=step))
            due = max(due + self._step_s, time.monotonic() - self._step_s)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _step(self) -> engine_pb2.StepBatch | None:
        runnable = [(key, stream) for key, stream in self._running.items() if stream.position < stream.credit]
        if not runnable:
            return None
        self._step_id += 1
        now = time.time_ns()
        step = engine_pb2.StepBatch(
            step_id=self._step_id,
            started_ns=now,
            ended_ns=now,
            stream_ids=[key for key, _ in runnable],
            positions=[stream.position for _, stream in runnable],
            token_ids=[_token(stream.position + key) for key, stream in runnable],
            logprobs=[-0.5] * len(runnable),
        )
        for key, stream in runnable:
            if stream.position == 0:
                step.started.add(stream_id=key, at_ns=now)
            stream.position += 1
            if stream.position == stream.end:
                del self._running[key]
                step.ends.add(stream_id=key, reason=types_pb2.FINISH_REASON_LENGTH)
        return step

    async def _beat(self, context: Any, lock: asyncio.Lock) -> None:
        while True:
            self._step_id += 1  # a core whose sequences all wait for credit shows so that it lives
            heartbeat = engine_pb2.Heartbeat(
                time_ns=time.time_ns(), step_id=self._step_id, num_requests=len(self._running), load=self._load()
            )
            async with lock:
                await context.write(engine_pb2.LinkResponse(heartbeat=heartbeat))
            await asyncio.sleep(_HEARTBEAT_S)

    def _load(self) -> engine_pb2.Load:
        return engine_pb2.Load(
            num_running=len(self._running),
            pages_in_use=len(self._running),
            pages_free=(1 << 20) - len(self._running),
            prefill_tokens_per_s=1e6,
            decode_s_per_sequence=1e-6,
            step_id=self._step_id,
        )


def _token(number: int) -> int:
    return _FIRST_ID + 7 * number % _NUM_IDS


async def _serve(arguments: argparse.Namespace) -> None:
    directory = resolve_model(arguments.model)
    model = types_pb2.ModelInfo(
        name="model",
        revision="r",
        tokenizer_revision=tokenizer_revision(directory),
        max_model_len=32_768,
        vocab_size=json.loads((directory / "config.json").read_text("utf-8"))["vocab_size"],
        page_size=PAGE_SIZE,
        eos_token_ids=[2],
    )
    step_s = 1 / arguments.steps_per_s if arguments.steps_per_s else 0.0
    addresses, servers = [], []
    for index in range(arguments.engines):
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        engine_pb2_grpc.add_EngineServiceServicer_to_server(CountingEngine(f"e{index}", model, step_s), server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    stop = StopRequest()
    stop.watch_stdin(hurry=True)
    print(json.dumps({"addresses": addresses}), flush=True)
    await stop.asked.wait()
    await asyncio.gather(*(server.stop(None) for server in servers))


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, required=True)
    parser.add_argument("--steps-per-s", type=float, required=True)
    parser.add_argument("--model", required=True)
    run(_serve(parser.parse_args()))
    sys.exit(0)


if __name__ == "__main__":
    main()
