"""Clients of the contenders behind one interface: greedy text in, text out, with the time of each piece."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from octavo.errors import OctavoError
from octavo_client import Chunk, Finished, OctavoClient, Sampling

_CONNECT_S: Final = 5.0


@dataclass(slots=True)
class Answer:
    """What one request brought, as far as it got.

    Attributes:
        sent_s: monotonic time when it was sent.
        piece_s: when each piece of text came.
        text: all text.
        error: why it ended early; empty if it did not.
        moves: engines that it lost, where the contender tells.
        is_over: whether it has ended, well or not.
        changed: set with each piece, and at the end.
    """

    sent_s: float = field(default_factory=time.monotonic)
    piece_s: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    moves: int = 0
    error: str = ""
    is_over: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first text."""
        return self.piece_s[0] - self.sent_s if self.piece_s else None

    def longest_gap_s(self, now_s: float) -> float:
        """Return the longest wait for a piece after the first; a stream that is not over waits until now."""
        times = self.piece_s if self.is_over else [*self.piece_s, now_s]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def add_text(self, text: str) -> None:
        """Take a piece; an empty one is no news to a reader."""
        if text:
            self.piece_s.append(time.monotonic())
            self.text += text
            self.changed.set()

    def end(self) -> None:
        """Take the end."""
        self.is_over = True
        self.changed.set()


Ask = Callable[[str, int, Answer], Coroutine[Any, Any, None]]
"""Sends a prompt, asks for so many tokens, fills the answer. Raises nothing but CancelledError: errors go into the answer."""


def octavo_target(client: OctavoClient) -> Ask:
    """Return the way to ask an Octavo router."""

    async def ask(prompt: str, max_tokens: int, answer: Answer) -> None:
        sampling = Sampling(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        try:
            async with client.generate(prompt, sampling=sampling) as generation:
                async for event in generation:
                    if isinstance(event, Chunk):
                        answer.add_text(event.text)
                    elif isinstance(event, Finished):
                        answer.prompt_tokens = event.usage.prompt_tokens
                        answer.cached_tokens = event.usage.cached_tokens
                        answer.output_tokens = event.usage.output_tokens
                        answer.moves = event.num_moves
                        if event.reason.value not in {"stop", "length"}:
                            answer.error = f"finish reason {event.reason.value}"
        except OctavoError as error:
            answer.error = error.reason
        answer.end()

    return ask


def openai_target(port: int, model: str) -> Ask:
    """Return the way to ask a server of OpenAI's completions on this machine."""

    async def ask(prompt: str, max_tokens: int, answer: Answer) -> None:
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            await _read_events(port, json.dumps(body).encode(), answer)
        except (OSError, ValueError, EOFError) as error:
            answer.error = f"broken stream ({type(error).__name__})"
        answer.end()

    return ask


async def _read_events(port: int, body: bytes, answer: Answer) -> None:
    reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), _CONNECT_S)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        status = int((await reader.readline()).split()[1])
        headers = await reader.readuntil(b"\r\n\r\n")
        if status != 200:
            answer.error = f"status {status}"
            return
        if b"chunked" not in headers.lower():
            raise ValueError("the body is not chunked")
        done = False
        async with aclosing(_lines(reader)) as lines:
            async for line in lines:
                done = done or line == b"data: [DONE]"
                if line.startswith(b"data: {"):
                    _take_event(json.loads(line[len(b"data: ") :]), answer)
        if not done and not answer.error:
            answer.error = "ended without [DONE]"
    finally:
        writer.close()


async def _lines(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    """Yield the lines of a chunked body."""
    rest = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
        await reader.readexactly(2)
        for line in lines:
            yield line.strip()


def _take_event(event: dict[str, Any], answer: Answer) -> None:
    if "error" in event:
        answer.error = f"error event {event['error'].get('code') or event['error'].get('type')}"
        return
    for choice in event["choices"]:
        answer.add_text(choice["text"])
        if choice["finish_reason"] not in {None, "stop", "length"}:
            answer.error = f"finish reason {choice['finish_reason']}"
    if usage := event.get("usage"):
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.output_tokens = usage["completion_tokens"]
        answer.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
