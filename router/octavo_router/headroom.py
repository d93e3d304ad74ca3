"""Decides whether an engine has room for one more request. Pure: what is known of the engine comes in as numbers.

Requests should wait in the router's fair queue, not in an engine's, where nobody knows of tenants. So an engine gets no
more than keeps it busy until the router hears of it again: prefill work for a little longer than a heartbeat, or for its
next step, a few requests more than it has slots, and no more pages than its pool has. What is known of it are its load reports and all
that was sent since, by other routers too.

Routers that share engines must share their room. A router hears of its own requests' ends at once and of others' only in
reports, so that whoever has most there would always be first to see room. So the gate is narrower for a router with a
larger share of the requests: the one with the smallest share goes first, until the shares are even.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Of the pages, for a router that is alone. Running sequences grow into the rest; engines themselves leave 3 %.
FULLEST_POOL: Final = 0.95
_FULLEST_FOR_ALL: Final = 0.97
# One request waits there for each so many slots: a slot that becomes free is taken with the next step.
SLOTS_PER_SPARE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRoom:
    """What counts of an engine's load, with all that is on its way there.

    Attributes:
        waiting_tokens: prefill tokens that no step has taken yet.
        prefill_tokens_per_s: its best rate.
        max_step_tokens: most tokens of a step; 0 if it did not say.
        num_requests: running and waiting.
        max_sequences: slots; 0 if it did not say.
        pages_in_use: held by sequences, or about to be.
        num_pages: of its pool.
        page_size: tokens in a page.
    """

    waiting_tokens: int
    prefill_tokens_per_s: float
    max_step_tokens: int
    num_requests: int
    max_sequences: int
    pages_in_use: int
    num_pages: int
    page_size: int

    def has_room(self, *, num_sequences: int, num_tokens: int, queue_s: float, share: float) -> bool:
        """Tell whether a request may be sent there now.

        Args:
            num_sequences: its choices.
            num_tokens: that it will need pages for, estimated.
            queue_s: prefill work that may wait there, seconds, if this router is alone; up to twice as much if not.
            share: of the fleet's requests that are this router's, from 0 to 1.
        """
        if self.num_requests == 0:  # also for what fits nowhere: the engine itself says why
            return True
        width = 2.0 - share
        spare = max(1.0, width * self.max_sequences / SLOTS_PER_SPARE)
        has_slot = not self.max_sequences or self.num_requests + num_sequences <= self.max_sequences + spare
        fullest = FULLEST_POOL + (width - 1) * (_FULLEST_FOR_ALL - FULLEST_POOL)
        has_pages = self.pages_in_use + -(-num_tokens // self.page_size) <= fullest * self.num_pages
        # The next step must find as much as it can take, however long steps are.
        enough = max(queue_s * self.prefill_tokens_per_s, self.max_step_tokens)
        return has_slot and has_pages and self.waiting_tokens < width * enough
