"""What penalties need to know of sequences: how often each token stands in them.

A tally is a word for each id of the vocabulary: 2 * (times in the output) + (1 if in the prompt). It follows from a
sequence's tokens, so it is right again after a preemption, a fork or a move, whatever happened before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import torch

from octavo_engine.batch import Array, Penalties, Put
from octavo_engine.sequence import Row, Sequence
from octavo_engine.transfer import pinned

_WORD_BYTES: Final = 4


def write_tally(sequence: Sequence, tally: Array) -> None:
    """Write what a sequence holds, as far as the host knows it.

    Args:
        sequence: whose tokens.
        tally: [V] int32, written.
    """
    tokens = np.array(sequence.tokens, dtype=np.int64)
    num_prompt = sequence.num_prompt
    tally[:] = 0
    tally[tokens[:num_prompt]] = 1
    np.add.at(tally, tokens[num_prompt:], 2)


def count_anew(rows: Iterable[Row], vocab_size: int) -> Penalties | None:
    """Return the penalties of a step's rows that sample, all of whose tokens the host knows; None if none has any."""
    sampling_rows = [row for row in rows if row.samples]
    penalized = [row for row in sampling_rows if row.sequence.request.sampling.has_penalties]
    if not penalized:
        return None
    tallies = np.empty((len(penalized), vocab_size), dtype=np.int32)
    for row, tally in zip(penalized, tallies, strict=True):
        write_tally(row.sequence, tally)
    place_of = {row.slot: place for place, row in enumerate(penalized)}
    samplings = [row.sequence.request.sampling for row in sampling_rows]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)

    return Penalties(
        tallies=torch.from_numpy(tallies),
        slots=torch.tensor([place_of.get(row.slot, 0) for row in sampling_rows]),
        frequency=column([sampling.frequency_penalty for sampling in samplings]),
        presence=column([sampling.presence_penalty for sampling in samplings]),
        repetition=column([sampling.repetition_penalty for sampling in samplings]),
    )


class SlotPenalties:
    """Penalties by slot, and tallies that count on where tokens are sampled: on the device, before the host reads them.

    Args:
        num_rows: slots, the one for padding included.
        vocab_size: words of a tally.
        device: of the tallies.

    Attributes:
        frequency, presence, repetition: [num_rows] float32 on the host, penalties of each occupant.
    """

    def __init__(self, *, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self.frequency = np.zeros(num_rows, dtype=np.float32)
        self.presence = np.zeros(num_rows, dtype=np.float32)
        self.repetition = np.ones(num_rows, dtype=np.float32)
        self._shape = (num_rows, vocab_size)
        self._device = device
        self._tallies: torch.Tensor | None = None
        self._penalized: set[int] = set()

    @property
    def tallies(self) -> torch.Tensor:
        """[num_rows, V] int32 on the device; it takes memory from its first use on, and never moves."""
        if self._tallies is None:
            self._tallies = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        return self._tallies

    def occupy(self, slot: int, sequence: Sequence) -> None:
        """Give a slot to a sequence all of whose tokens the host knows."""
        sampling = sequence.request.sampling
        if not sampling.has_penalties and slot not in self._penalized:
            return
        self.frequency[slot] = sampling.frequency_penalty
        self.presence[slot] = sampling.presence_penalty
        self.repetition[slot] = sampling.repetition_penalty
        if not sampling.has_penalties:
            self._penalized.discard(slot)
            return
        self._penalized.add(slot)
        host = pinned(_WORD_BYTES * self._shape[1], self._device).view(torch.int32)
        write_tally(sequence, host.numpy())
        self.tallies[slot].copy_(host, non_blocking=True)

    def concern(self, rows: Iterable[Row]) -> bool:
        """Tell whether a row that samples has penalties; its slot must be its sequence's."""
        penalized = self._penalized
        return bool(penalized) and any(row.slot in penalized and row.samples for row in rows)

    def columns(self, rows: Iterable[Row], slots: torch.Tensor, put: Put) -> Penalties:
        """Return the penalties of a step's rows that sample.

        Args:
            rows: these rows.
            slots: [B] int64 on the device, their slots.
            put: brings a column to the device.
        """
        at = [row.slot for row in rows]
        return Penalties(
            tallies=self.tallies,
            slots=slots,
            frequency=put(self.frequency[at]),
            presence=put(self.presence[at]),
            repetition=put(self.repetition[at]),
        )

    def release(self) -> None:
        """Give the tallies' memory back; no sequence has a slot, and no captured step refers to them."""
        self.vacate()
        self._tallies = None

    def vacate(self) -> None:
        """Forget all occupants; no sequence has a slot."""
        for slot in self._penalized:
            self.frequency[slot] = self.presence[slot] = 0
            self.repetition[slot] = 1
        self._penalized.clear()
