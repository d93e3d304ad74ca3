"""The requests of a chaos run, and the clients that send them over and over."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from octavo.errors import from_rpc_error
from octavo.v1 import inference_pb2
from support.router_client import request
from support.stream_record import Failure, Piece, StreamRecord, Violation, check_stream

TIMEOUT_S: Final = 60.0
EARLY_TOKENS: Final = 20
_MOST_PAUSE_S: Final = 0.8  # engines that start again need some of the processor too


@dataclass(frozen=True, eq=False)
class Kind:
    """A request that is sent many times; every answer must be the same."""

    name: str
    message: inference_pb2.GenerateRequest

    @property
    def num_choices(self) -> int:
        return int(self.message.sampling.n or 1)


def kinds_of(seed: int) -> list[Kind]:
    """Return greedy and seeded requests, with one choice and with three, long and short, none with a stop string."""
    draw = random.Random(f"requests {seed}")
    shared = [draw.randrange(3, 480) for _ in range(64)]
    samplings: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0.0},
        "seeded": {"temperature": 0.9, "top_p": 0.95},
        "greedy n=3": {"temperature": 0.0, "n": 3},
        "seeded n=3": {"temperature": 0.8, "top_k": 40, "n": 3},
    }
    kinds = []
    for name, sampling in samplings.items():
        for max_tokens in (40, 160):
            prompt = shared[: draw.choice((0, 32, 64))] + [draw.randrange(3, 480) for _ in range(draw.randrange(5, 90))]
            message = request(
                prompt,
                max_tokens=max_tokens,
                seed=draw.getrandbits(63),
                logprobs=True,
                ignore_eos=draw.random() < 0.7,
                **sampling,
            )
            kinds.append(Kind(f"{name}, {max_tokens} tokens", message))
    return kinds


def with_stop_string(kind: Kind, undisturbed: StreamRecord) -> Kind | None:
    """Return the same request with a stop string that its first choice comes upon late; None if that one says nothing."""
    text = "".join(event.text for event in undisturbed.events if isinstance(event, Piece) and event.choice == 0)
    if not text:
        return None
    start = len(text) * 2 // 3
    message = inference_pb2.GenerateRequest()
    message.CopyFrom(kind.message)
    message.sampling.stop.append(text[start : start + 4])
    return Kind(f"{kind.name}, with a stop string", message)


Interruption = Callable[[StreamRecord], Awaitable[None]]


async def run_once(stub: Any, kind: Kind, request_id: str, interruption: Interruption | None = None) -> StreamRecord:
    """Send a request and record all that comes; an interruption is called once, in the middle of the output."""
    record = StreamRecord(request_id, kind.num_choices)
    call = stub.Generate(kind.message, metadata=(("x-request-id", request_id),), timeout=TIMEOUT_S)
    heard_at = time.monotonic()
    try:
        async for response in call:
            now = time.monotonic()
            record.longest_gap_s, heard_at = max(record.longest_gap_s, now - heard_at), now
            record.add(response)
            if interruption is not None and record.num_tokens >= EARLY_TOKENS:
                await interruption(record)
                interruption = None
    except grpc.aio.AioRpcError as error:
        record.events.append(Failure(error.code().name, from_rpc_error(error).reason))
    return record


class Load:
    """Clients that send one request after the other until they are told to stop. Everything they were given is kept."""

    def __init__(self, stubs: Sequence[Any], oracle: dict[Kind, StreamRecord], *, seed: int, num_clients: int) -> None:
        self.records: list[tuple[Kind, StreamRecord]] = []
        self._stubs = stubs
        self._oracle = oracle
        self._seed = seed
        self._is_stopping = False
        self._clients = [asyncio.create_task(self._client(number)) for number in range(num_clients)]
        self._running: set[str] = set()
        self._one_ended = asyncio.Condition()

    async def wait_for_current(self) -> None:
        """Wait until all requests that run now have ended."""
        current = set(self._running)
        async with self._one_ended:
            await self._one_ended.wait_for(lambda: not current & self._running)

    async def stop(self) -> None:
        """Let what runs end."""
        self._is_stopping = True
        await asyncio.gather(*self._clients)

    def violations(self) -> list[Violation]:
        """Judge everything against the undisturbed runs."""
        return [violation for kind, record in self.records for violation in check_stream(record, self._oracle[kind])]

    def summary(self) -> str:
        """Return what the run was, in one line."""
        moves = Counter(record.num_moves for _, record in self.records)
        num_tokens = sum(record.num_tokens for _, record in self.records)
        longest = max((record.longest_gap_s for _, record in self.records), default=0.0)
        moved = ", ".join(f"{count} moved {times}x" for times, count in sorted(moves.items()) if times)
        return (
            f"{len(self.records)} requests, {num_tokens} tokens; {moved or 'none moved'}; longest gap {longest:.2f} s"
        )

    async def _client(self, number: int) -> None:
        draw = random.Random(f"client {number} {self._seed}")
        kinds = list(self._oracle)
        for count in range(1_000_000):
            if self._is_stopping:
                return
            kind = draw.choice(kinds)
            request_id = f"client {number} request {count} ({kind.name})".replace(" ", "_")
            await asyncio.sleep(draw.uniform(0, _MOST_PAUSE_S))
            self._running.add(request_id)
            record = await run_once(self._stubs[(number + count) % len(self._stubs)], kind, request_id)
            self.records.append((kind, record))
            async with self._one_ended:
                self._running.discard(request_id)
                self._one_ended.notify_all()


async def undisturbed(stub: Any, kinds: Sequence[Kind]) -> dict[Kind, StreamRecord]:
    """Return the oracle: each request once, before anything is broken."""
    names = [f"undisturbed ({kind.name})".replace(" ", "_") for kind in kinds]
    records = await asyncio.gather(*(run_once(stub, kind, name) for kind, name in zip(kinds, names, strict=True)))
    return dict(zip(kinds, records, strict=True))
