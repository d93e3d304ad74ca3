"""A model of a model: tokens are hashes of what came before, and a page remembers what was written to it.

Each cell of a page holds the prefix that ends there. A row may compute only if every earlier position of its block table
holds its own prefix: wrong sharing, a missing copy, or a page given away too early all show up as a wrong prefix.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from octavo_engine.pages import PagePool
from octavo_engine.sequence import FinishReason, Request, Row, Sampled, StepPlan

VOCAB_SIZE = 6


def next_token(tokens: list[int], seed: int, position: int, banned: tuple[int, ...]) -> int:
    """Return the token that the model gives after `tokens`: a function of nothing else but seed and position."""
    digest = hashlib.blake2b(repr((tokens, seed, position)).encode()).digest()
    return next(byte % VOCAB_SIZE for byte in digest if byte % VOCAB_SIZE not in banned)


def undisturbed(request: Request, choice: int, max_len: int) -> tuple[list[int], FinishReason]:
    """Return the whole output of a choice, and why it ends, if it ran alone from the start."""
    sampling, tokens = request.sampling, list(request.prompt)
    seed = (sampling.seed + choice) % 2**64
    while True:
        position = len(tokens) - len(request.prompt)
        banned = tuple(sampling.stop_token_ids) if position < sampling.min_tokens else ()
        tokens.append(next_token(tokens, seed, position, banned))
        output = tokens[len(request.prompt) :]
        if output[-1] in sampling.stop_token_ids and position >= sampling.min_tokens:
            return output, FinishReason.STOP
        if len(output) >= sampling.max_tokens or len(tokens) >= max_len:
            return output, FinishReason.LENGTH


@dataclass
class Launched:
    plan: StepPlan
    sampled: Sampled


class PagedModel:
    """Runs plans at once, in order; keeps to itself the tokens that the scheduler has not read yet."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._cells: dict[int, list[tuple[int, ...] | None]] = {}
        self._fed: dict[int, dict[int, int]] = {}  # by generation: a slot's next occupant knows nothing of it
        self._occupants: dict[int, int] = {}
        self.num_tokens = 0

    def launch(self, plan: StepPlan) -> Launched:
        destinations = [destination for _, destination in plan.copies]
        assert len(set(destinations)) == len(destinations)
        assert not set(destinations) & {source for source, _ in plan.copies}
        for source, destination in plan.copies:
            self._cells[destination] = list(self._page(source))
        assert len({row.slot for row in plan.rows}) == len(plan.rows)
        written = [page for row in plan.rows for page in self._written(row)]
        assert len(set(written)) == len(written), "two rows write one page"
        token_ids = [token for row in plan.rows if (token := self._run(row)) is not None]
        return Launched(plan, Sampled(token_ids=token_ids, logprobs=[-float(token) for token in token_ids]))

    def _written(self, row: Row) -> list[int]:
        size = self._pool.page_size
        return list(row.block_table[row.start // size : (row.start + row.num_tokens - 1) // size + 1])

    def _run(self, row: Row) -> int | None:
        tokens, size, end = self._tokens(row), self._pool.page_size, row.start + row.num_tokens
        assert row.num_tokens > 0
        assert self._occupants.get(row.slot, 0) <= row.generation, "a slot goes back to an earlier occupant"
        self._occupants[row.slot] = row.generation
        for page in self._written(row):
            assert self._pool.is_writable(page), "a row writes a page that others may read"
        for position in range(row.start, end):
            self._page(row.block_table[position // size])[position % size] = tuple(tokens[: position + 1])
        for position in range(end):
            cell = self._page(row.block_table[position // size])[position % size]
            assert cell == tuple(tokens[: position + 1]), "a row reads what is not its own prefix"
        self.num_tokens += row.num_tokens
        assert row.samples == (end == len(tokens))
        if not row.samples:
            return None
        assert row.output_position == len(tokens) - row.sequence.num_prompt
        token = next_token(tokens, row.sequence.seed, row.output_position, row.banned_token_ids)
        self._fed.setdefault(row.generation, {})[end] = token
        return token

    def _tokens(self, row: Row) -> list[int]:
        """Return what the sequence holds once the steps before this one are read: known tokens, then the slot's own."""
        tokens = list(row.sequence.tokens)
        fed = self._fed.get(row.generation, {})
        while len(tokens) in fed:
            tokens.append(fed[len(tokens)])
        return tokens

    def _page(self, page: int) -> list[tuple[int, ...] | None]:
        return self._cells.setdefault(page, [None] * self._pool.page_size)
