"""The newest load of an engine, as routers see it."""

from __future__ import annotations

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
        self._num_sent = 0
        self._sent_tokens: dict[int, int] = {}

    def sent(self, num_tokens: int) -> None:
        """Note a request of `num_tokens` prompt tokens on its way to the core."""
        self._num_sent += 1
        self._sent_tokens[self._num_sent] = num_tokens

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

    def message(self) -> engine_pb2.Load:
        """Return the load as of now."""
        load = engine_pb2.Load()
        self.fill(load)
        return load
