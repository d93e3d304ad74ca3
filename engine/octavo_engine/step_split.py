"""One step's results, split among the readers: columns in, one message per reader out.

The key of a request holds its reader's number above the reader's own stream id, so no token is looked up:

    key | reader number (31 bits) | stream id (32 bits) |
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Final

from octavo.v1 import engine_pb2

from octavo_engine.clock import Clock
from octavo_engine.messages import StepFrame

_STREAM_BITS: Final = 32
STREAM_MASK: Final = (1 << _STREAM_BITS) - 1


def key_of(reader: int, stream_id: int) -> int:
    """Return the key of a reader's request."""
    return reader << _STREAM_BITS | stream_id


def reader_of(key: int) -> int:
    """Return the number of a request's reader."""
    return key >> _STREAM_BITS


class StepSplit:
    """The messages that a step makes.

    Args:
        frame: the step.
        readers: numbers of the readers that are there; results for others are dropped.
        clock: maps the step's times.

    Attributes:
        responses: message for each reader that gets one, by number.
    """

    def __init__(self, frame: StepFrame, readers: Container[int], clock: Clock) -> None:
        self.frame = frame
        self.responses: dict[int, engine_pb2.LinkResponse] = {}
        self._readers = readers
        self._clock = clock

    def batch_for(self, key: int) -> engine_pb2.StepBatch | None:
        """Return the batch for the reader of a request; None if the reader is gone."""
        return self._batch(reader_of(key))

    def add_tokens(self) -> None:
        """Share the tokens out."""
        for reader, indices in _by_reader(self.frame.keys):
            batch = self._batch(reader)
            if batch is not None:
                _add_tokens(batch, self.frame, indices)

    def _batch(self, reader: int) -> engine_pb2.StepBatch | None:
        response = self.responses.get(reader)
        if response is not None:
            return response.step
        if reader not in self._readers:
            return None
        response = self.responses[reader] = engine_pb2.LinkResponse()
        batch = response.step
        batch.step_id = self.frame.step_id
        batch.started_ns = self._clock.unix_ns(self.frame.started_ns)
        batch.ended_ns = self._clock.unix_ns(self.frame.ended_ns)
        return batch


def _by_reader(keys: list[int]) -> Iterator[tuple[int, list[int] | None]]:
    """Yield each reader's number with the indices of its tokens; None stands for all of them."""
    if not keys:
        return
    first = reader_of(min(keys))
    if first == reader_of(max(keys)):
        yield first, None
        return
    groups: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key >> _STREAM_BITS, []).append(index)
    yield from groups.items()


def _add_tokens(batch: engine_pb2.StepBatch, frame: StepFrame, indices: list[int] | None) -> None:
    if indices is None:
        keys, choices, positions = frame.keys, frame.choices, frame.positions
        token_ids, logprobs = frame.token_ids, frame.logprobs
    else:
        keys = [frame.keys[index] for index in indices]
        choices = [frame.choices[index] for index in indices]
        positions = [frame.positions[index] for index in indices]
        token_ids = [frame.token_ids[index] for index in indices]
        logprobs = [frame.logprobs[index] for index in indices]
    batch.stream_ids.extend([key & STREAM_MASK for key in keys])
    if any(choices):
        batch.choices.extend(choices)
    batch.positions.extend(positions)
    batch.token_ids.extend(token_ids)
    batch.logprobs.extend(logprobs)
