"""A process of streaming clients: each asks, reads to the end, and asks again.

    python reader.py --target ADDRESS --streams 64 --slow 0 --max-tokens 1000

Says {"ready": true} when every stream has had its first tokens; takes a line "FROM UNTIL" (monotonic seconds) from
standard input, and says then what was read between these times: tokens, messages, and the gaps between messages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from octavo.process import run
from octavo.v1 import inference_pb2, inference_pb2_grpc, types_pb2

_GIVE_UP_S = 120.0


@dataclass(slots=True)
class _Tally:
    from_s: float = float("inf")
    until_s: float = float("inf")
    tokens: int = 0
    messages: int = 0
    requests: int = 0
    gaps_s: array[float] = field(default_factory=lambda: array("d"))

    def take(self, num_tokens: int, now_s: float, previous_s: float | None) -> None:
        if self.from_s <= now_s < self.until_s:
            self.tokens += num_tokens
            self.messages += 1
            if previous_s is not None:
                self.gaps_s.append(now_s - previous_s)


class _Readers:
    def __init__(self, arguments: argparse.Namespace, stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> None:
        self.tally = _Tally()
        self._arguments = arguments
        self._stub = stub
        self._number = 0

    async def read(self, ready: asyncio.Event) -> None:
        """Ask again and again."""
        while True:
            previous_s = None
            call = self._stub.Generate(self._request())
            while isinstance(response := await call.read(), inference_pb2.GenerateResponse):
                if not response.HasField("chunk"):
                    continue
                now_s = time.monotonic()
                self.tally.take(response.chunk.num_tokens, now_s, previous_s)
                previous_s = now_s
                ready.set()
            if await call.code() is not grpc.StatusCode.OK:
                raise RuntimeError(f"a stream ended with {await call.code()}: {await call.details()}")
            self.tally.requests += 1

    async def stop_reading(self, ready: asyncio.Event) -> None:
        """Ask once, read until text comes, and read no more."""
        call = self._stub.Generate(self._request())
        while not (await call.read()).HasField("chunk"):
            pass
        ready.set()
        await asyncio.Event().wait()

    def _request(self) -> inference_pb2.GenerateRequest:
        self._number += 1
        prompt = [1000 + self._number % 5000] * 32
        return inference_pb2.GenerateRequest(
            input=inference_pb2.Input(tokens=inference_pb2.TokenInput(ids=prompt)),
            sampling=types_pb2.SamplingParams(max_tokens=self._arguments.max_tokens, temperature=0, ignore_eos=True),
        )


async def _main(arguments: argparse.Namespace) -> None:
    async with grpc.aio.insecure_channel(arguments.target, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        readers = _Readers(arguments, inference_pb2_grpc.InferenceServiceStub(channel))
        events = [asyncio.Event() for _ in range(arguments.streams + arguments.slow)]
        tasks = [asyncio.create_task(readers.read(event)) for event in events[: arguments.streams]]
        tasks += [asyncio.create_task(readers.stop_reading(event)) for event in events[arguments.streams :]]
        begun = asyncio.create_task(_all_set(events))
        async with asyncio.timeout(_GIVE_UP_S):
            await asyncio.wait([*tasks, begun], return_when="FIRST_COMPLETED")
        begun.cancel()
        _raise_first(tasks)
        _say({"ready": True})
        line = await asyncio.to_thread(sys.stdin.readline)
        tally = readers.tally
        tally.from_s, tally.until_s = map(float, line.split())
        await asyncio.wait(tasks, timeout=tally.until_s - time.monotonic(), return_when="FIRST_COMPLETED")
        _raise_first(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    gaps_ms = sorted(1e3 * gap for gap in tally.gaps_s) or [0.0]
    _say(
        {
            "tokens": tally.tokens,
            "messages": tally.messages,
            "requests": tally.requests,
            "gap_ms_p50": gaps_ms[len(gaps_ms) // 2],
            "gap_ms_p99": gaps_ms[len(gaps_ms) * 99 // 100],
        }
    )


async def _all_set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


def _raise_first(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


def _say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    """Read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--slow", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, required=True)
    run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
