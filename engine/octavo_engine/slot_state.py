"""State of running sequences on the device, by slot, and the host's mirror of it.

The device keeps what the host cannot know in time (the token that a slot sampled last) and what would be long to send
in every step (block tables). The mirror remembers what the device has, so that a step uploads only what is new to it.
A slot's occupant is known by its generation: another value, and everything about the slot is new.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from octavo_engine.batch import TABLE_STEP, Array, signed
from octavo_engine.penalties import SlotPenalties
from octavo_engine.sequence import Row


class SlotState:
    """Slots 0 .. num_slots - 1, and one more, `padding`, which nobody occupies and whose state means nothing.

    Args:
        num_slots: most sequences that run at once.
        max_pages: most pages of a sequence.
        page_size: tokens a page.
        vocab_size: number of token ids.
        device: of the tensors.

    Attributes:
        tables: [num_slots + 1, max_pages] int32 on the device.
        last_tokens: [num_slots + 1] int64 on the device, what each slot sampled last.
        seeds, temperature, top_k, top_p, min_p: [num_slots + 1] on the host, how each occupant samples.
        penalties: each occupant's.
    """

    def __init__(
        self, *, num_slots: int, max_pages: int, page_size: int, vocab_size: int, device: torch.device
    ) -> None:
        rows = num_slots + 1
        self.padding = num_slots
        self.page_size = page_size
        self.max_pages = max_pages
        self.tables = torch.zeros(rows, max_pages, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.seeds = np.zeros(rows, dtype=np.int64)
        self.temperature = np.zeros(rows, dtype=np.float32)
        self.top_k = np.zeros(rows, dtype=np.int32)
        self.top_p = np.ones(rows, dtype=np.float32)
        self.min_p = np.zeros(rows, dtype=np.float32)
        self.penalties = SlotPenalties(num_rows=rows, vocab_size=vocab_size, device=device)
        self._host_tables = np.zeros((rows, max_pages), dtype=np.int32)
        self._generations = [-1] * rows
        self._num_known = [0] * rows
        self._num_sent = [0] * rows

    def meet(self, row: Row) -> None:
        """Bring the mirror up to date with a row of the step to come."""
        slot = row.slot
        if self._generations[slot] != row.generation:
            self._occupy(row)
        known, table = self._num_known[slot], row.block_table
        if len(table) != known:
            self._host_tables[slot, known : len(table)] = table[known:]
            self._num_known[slot] = len(table)

    def lacks_pages(self, row: Row) -> bool:
        """Tell whether the device lacks an entry before that of the row's first token; `meet` it first."""
        return self._num_sent[row.slot] < row.start // self.page_size

    def note_decode(self, row: Row) -> None:
        """Note that a step writes the entry of the row's first token."""
        self._num_sent[row.slot] = max(self._num_sent[row.slot], row.start // self.page_size + 1)

    def block_tables(self, rows: Sequence[Row]) -> Array:
        """Return the rows' block tables [S, at least the most pages of one]; `meet` them first."""
        slots = [row.slot for row in rows]
        width = max(self._num_known[slot] for slot in slots)
        width = min(-(-width // TABLE_STEP) * TABLE_STEP, self.max_pages)
        # Entries beyond what a slot knows may be a former occupant's: nothing reads them.
        return self._host_tables[slots, :width]

    def write_tables(self, rows: Sequence[Row], slots: torch.Tensor, tables: torch.Tensor) -> None:
        """Let the device's state have the rows' block tables.

        Args:
            rows: whose.
            slots: [S] int64 on the device, theirs.
            tables: [S, W] int32 on the device, as `block_tables` gave them.
        """
        self.tables[:, : tables.shape[1]].index_copy_(0, slots, tables)
        for row in rows:
            self._num_sent[row.slot] = self._num_known[row.slot]

    def forget(self) -> None:
        """Forget what the device has: a step failed, and nobody knows how far it came."""
        self._generations = [-1] * len(self._generations)

    def _occupy(self, row: Row) -> None:
        slot, sampling = row.slot, row.sequence.request.sampling
        self._generations[slot] = row.generation
        self._num_known[slot] = self._num_sent[slot] = 0
        self.seeds[slot] = signed(row.sequence.seed)
        self.temperature[slot] = sampling.temperature
        self.top_k[slot] = sampling.top_k
        self.top_p[slot] = sampling.top_p
        self.min_p[slot] = sampling.min_p
        self.penalties.occupy(slot, row.sequence)
