"""One SubscribeKvEvents stream: the pages told so far, then what changes, and the load with all of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, Final

from octavo.errors import Overloaded
from smg_grpc_proto.generated import common_pb2

from octavo_engine.compat.loads import Loads
from octavo_engine.compat.page_ledger import Page, PageChange
from octavo_engine.compat.step_feed import Subscription

LOAD_PERIOD_S: Final = 0.1
"""A load record is due this long after the last one, whether or not pages changed."""
MAX_CHUNK_PAGES: Final = 4096
"""Pages in one message of a snapshot: some hundreds of kilobytes."""

_SIGNED = 1 << 63


async def kv_event_batches(subscription: Subscription, loads: Loads, page_size: int) -> AsyncGenerator[Any]:
    """Yield a snapshot, then batches and load records, until closed.

    Raises:
        Overloaded: the subscriber does not read; it must subscribe again.
    """
    sample = 0
    for batch in _snapshot(subscription, page_size):
        sample += 1
        batch.load.CopyFrom(loads.pushed(sample, load_only=False))
        yield batch
    sequence = subscription.first_sequence
    while True:
        await subscription.changed(LOAD_PERIOD_S)
        changes = subscription.take()
        if subscription.lags:
            raise Overloaded("events_not_drained", "the subscriber does not read its page events", retry_after_s=0.1)
        for change in changes:
            sample += 1
            sequence = change.sequence
            batch = _batch(sequence, _events(change.change, page_size))
            batch.load.CopyFrom(loads.pushed(sample, load_only=False))
            yield batch
        if not changes:
            sample += 1
            batch = _batch(sequence, ())
            batch.load.CopyFrom(loads.pushed(sample, load_only=True))
            yield batch


def _snapshot(subscription: Subscription, page_size: int) -> Iterator[Any]:
    """Yield the chunks of a snapshot. Their numbers end at the state's; the first one clears what was known."""
    pages = subscription.snapshot
    chunks = [pages[start : start + MAX_CHUNK_PAGES] for start in range(0, len(pages), MAX_CHUNK_PAGES)] or [[]]
    for index, chunk in enumerate(chunks):
        cleared = [common_pb2.KvCacheEvent(cleared=common_pb2.KvCacheCleared())] if index == 0 else []
        sequence = subscription.first_sequence - len(chunks) + 1 + index
        batch = _batch(sequence, [*cleared, *_events(PageChange(tuple(chunk)), page_size)])
        batch.snapshot.index = index
        batch.snapshot.count = len(chunks)
        batch.snapshot.blocks = len(pages)
        yield batch


def _batch(sequence: int, events: Sequence[Any]) -> Any:
    return common_pb2.KvEventBatch(sequence_number=sequence, timestamp=time.time(), events=events, dp_rank=0)


def _events(change: PageChange, page_size: int) -> list[Any]:
    events = [common_pb2.KvCacheEvent(stored=_stored(run, page_size)) for run in _runs(change.stored)]
    if change.removed:
        removed = common_pb2.KvBlocksRemoved(block_hashes=[_signed(short) for short in change.removed])
        events.append(common_pb2.KvCacheEvent(removed=removed))
    return events


def _runs(pages: Sequence[Page]) -> Iterator[list[Page]]:
    """Split pages where one is not the child of the page before it: an event names the parent of its first page only."""
    run: list[Page] = []
    for page in pages:
        if run and page.parent != run[-1].short_hash:
            yield run
            run = []
        run.append(page)
    if run:
        yield run


def _stored(run: Sequence[Page], page_size: int) -> Any:
    blocks = [
        common_pb2.KvBlock(block_hash=_signed(page.short_hash), token_ids=page.token_ids, block_size=page_size)
        for page in run
    ]
    parent = run[0].parent
    return common_pb2.KvBlocksStored(blocks=blocks, parent_block_hash=None if parent is None else _signed(parent))


def _signed(short: int) -> int:
    """Return the signed 64-bit number with the same bits."""
    return short - 2 * _SIGNED if short >= _SIGNED else short
