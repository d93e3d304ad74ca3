"""The newest load of an engine, as routers see it."""

from __future__ import annotations

import msgspec
from octavo.v1 import engine_pb2

from octavo_engine import messages

_NO_LOAD = messages.LoadReport(
    num_waiting=0,
    waiting_tokens=0,
    num_running=0,
    pages_in_use=0,
    pages_cached=0,
    pages_free=0,
    prefill_tokens_per_s=0.0,
    decode_s_per_sequence=0.0,
)


class LoadBoard:
    """Joins the core's report with the requests that are still on their way to it.

    A core in a long step knows nothing of what arrived meanwhile; routers must, or they all send to the same engine.
    """

    def __init__(self) -> None:
        self.report = _NO_LOAD
        self.step_id = 0
        self.draining = False
        self.stalled = False
        self._num_sent = 0
        self._sent_tokens: dict[int, int] = {}
        self._taken: dict[int, engine_pb2.Taken] = {}  # by number of the link
        self._links: dict[str, int] = {}  # router id -> number of its newest link

    def open(self, num_pages: int) -> None:
        """Note the pages of a core that has only just begun: all are free."""
        self.report = msgspec.structs.replace(self.report, pages_free=num_pages)

    def sent(self, num_uncached: int) -> None:
        """Note a request on its way to the core, and the prompt tokens that will have to be computed for it."""
        self._num_sent += 1
        self._sent_tokens[self._num_sent] = num_uncached

    def linked(self, link: int, router_id: str) -> None:
        """Note a router's new link: its stream ids start again, and those of an older link, not yet known to be dead, mean nothing."""
        self._taken.pop(self._links.get(router_id, 0), None)
        self._links[router_id] = link

    def took(self, link: int, router_id: str, stream_id: int) -> None:
        """Note the newest request that came over a link, even if it is refused: the load counts all up to it."""
        if self._links.get(router_id) == link:
            self._taken[link] = engine_pb2.Taken(router_id=router_id, stream_id=stream_id)

    def unlinked(self, link: int, router_id: str) -> None:
        """Forget a link that is gone, and its requests with it."""
        self._taken.pop(link, None)
        if self._links.get(router_id) == link:
            del self._links[router_id]

    def update(self, step_id: int, report: messages.LoadReport) -> None:
        """Take the core's newest report."""
        for number in range(self.report.num_taken + 1, report.num_taken + 1):
            self._sent_tokens.pop(number, None)
        self.step_id = step_id
        self.report = report

    def fill(self, load: engine_pb2.Load) -> None:
        """Write the load as of now."""
        report = self.report
        load.num_waiting = report.num_waiting + len(self._sent_tokens)
        load.waiting_tokens = report.waiting_tokens + sum(self._sent_tokens.values())
        load.num_running = report.num_running
        load.pages_in_use = report.pages_in_use
        load.pages_cached = report.pages_cached
        load.pages_free = report.pages_free
        load.prefill_tokens_per_s = report.prefill_tokens_per_s
        load.decode_s_per_sequence = report.decode_s_per_sequence
        load.step_id = self.step_id
        load.draining = self.draining
        load.warming = report.is_warming
        load.stalled = self.stalled
        load.taken.extend(self._taken.values())

    def message(self) -> engine_pb2.Load:
        """Return the load as of now."""
        load = engine_pb2.Load()
        self.fill(load)
        return load
