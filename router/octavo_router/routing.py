"""Decides which engine gets a prompt: matches its pages against the directory and ranks the engines by cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from octavo.page_hash import chain, salted_root, short_hashes, token_bytes

from octavo_router.fleet import Engine, Fleet
from octavo_router.kind import EngineKind
from octavo_router.load import Placement, PlacementNote
from octavo_router.policy import Cost, EngineView, Weights, rank

# Prompts that share so many of the first tokens that no engine holds tend to the same engine.
_KEY_TOKENS = 64


class Prompt:
    """Prompt token ids with their page hashes."""

    def __init__(self, token_ids: Sequence[int], *, cache_salt: bytes = b"") -> None:
        self.token_ids = token_ids
        self.cache_salt = cache_salt
        self._chains: dict[tuple[bytes, int], list[int]] = {}

    def __len__(self) -> int:
        return len(self.token_ids)

    def num_pages(self, page_size: int) -> int:
        """Full pages."""
        return len(self.token_ids) // page_size

    def hashes(self, root: bytes, page_size: int) -> list[int]:
        """Return the short hashes of the full pages, under an engine's root; none if it has no root: it caches nothing."""
        if not root:
            return []
        known = self._chains.get((root, page_size))
        if known is None:
            full = chain(salted_root(root, self.cache_salt), self.token_ids, page_size)
            known = self._chains[root, page_size] = short_hashes(full)
        return known

    def key(self, num_known: int) -> bytes:
        """Name the prompt by what follows its first `num_known` tokens: siblings share that, and no one else does."""
        return self.cache_salt + token_bytes(self.token_ids[num_known : num_known + _KEY_TOKENS])


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Engines for one prompt from best to worst, and why."""

    prompt_pages: int
    ranked: Sequence[Cost]

    @property
    def reason(self) -> str:
        """One line for people."""
        best = self.ranked[0]
        text = f"{best.engine_id}: {best.matched_pages} of {self.prompt_pages} pages cached, cost {best.cost_s:.3f} s"
        if len(self.ranked) == 1:
            return f"{text}, the only engine"
        return f"{text}, next {self.ranked[1].engine_id} {self.ranked[1].cost_s:.3f} s"


class Routing:
    """Ranks engines, and counts what was sent where.

    Args:
        fleet: the engines.
        weights: of the cost's terms.
        note: takes what was sent where, for the other routers.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        weights: Weights,
        note: Callable[[PlacementNote], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fleet = fleet
        self._weights = weights
        self._note = note
        self._clock = clock

    def route(
        self,
        prompt: Prompt,
        *,
        room: int,
        num_committed: int = 0,
        kind: EngineKind | None = None,
        excluded: Collection[tuple[str, int]] = (),
    ) -> Route:
        """Rank the engines that can take a prompt; the ranking is empty if none can.

        An engine whose context is too short for prompt and output would end the request early. It is chosen only if it
        has the longest context of all, those that are excluded included: better refused for now than cut.

        Args:
            prompt: the prompt.
            room: output tokens that the engine's context should leave to the prompt.
            num_committed: output tokens that are there already, for a request that moves: they are prefilled as well.
            kind: kind that the engine must be of; any if None.
            excluded: id and epoch of engines that may not be chosen.
        """
        serving = [engine for engine in self.fleet.serving() if kind is None or engine.kind == kind]
        longest = max((engine.info.model.max_model_len for engine in serving), default=0)
        least_len = max(min(len(prompt) + room, longest), len(prompt) + num_committed + 1)
        engines = [
            engine
            for engine in serving
            if (engine.engine_id, engine.epoch) not in excluded and engine.info.model.max_model_len >= least_len
        ]
        if not engines:
            return Route(prompt_pages=0, ranked=())
        views = self._views(prompt, engines, self._clock())
        prompt_pages = max(prompt.num_pages(engine.info.model.page_size) for engine in engines)
        num_known = max(view.matched_pages * view.page_size for view in views)
        key = prompt.key(num_known)
        ranked = rank(views, prompt_len=len(prompt) + num_committed, key=key, weights=self._weights)
        return Route(prompt_pages=prompt_pages, ranked=ranked)

    def place(self, engine: Engine, prompt: Prompt, cost: Cost, *, stream_id: int, num_sequences: int = 1) -> Placement:
        """Note that a prompt was sent to an engine, for this router and the others."""
        note = PlacementNote(
            engine_id=engine.engine_id,
            router_id=self.fleet.router_id,
            stream_id=stream_id,
            tokens=cost.uncached_tokens,
            pages=prompt.hashes(engine.info.page_hash_root, engine.info.model.page_size)[cost.matched_pages :],
            num_sequences=num_sequences,
        )
        self._note(note)
        return self.fleet.place(engine, note)

    def _views(self, prompt: Prompt, engines: Iterable[Engine], now: float) -> list[EngineView]:
        by_chain: dict[tuple[bytes, int], dict[str, int]] = {}
        views = []
        for engine in engines:
            root, page_size = engine.info.page_hash_root, engine.info.model.page_size
            matched = by_chain.get((root, page_size))
            if matched is None:
                # An engine never takes the last prompt token from its cache.
                reusable = prompt.hashes(root, page_size)[: (len(prompt) - 1) // page_size]
                matched = by_chain[root, page_size] = self.fleet.directory.match(reusable, now)
            views.append(_view(engine, matched.get(engine.engine_id, 0), now))
        return views


def _view(engine: Engine, matched_pages: int, now: float) -> EngineView:
    report = engine.load.report
    return EngineView(
        engine_id=engine.engine_id,
        matched_pages=matched_pages,
        page_size=engine.info.model.page_size,
        waiting_tokens=engine.load.waiting_tokens(now),
        num_running=engine.load.num_running(now),
        pages_in_use=report.pages_in_use,
        num_pages=engine.info.num_pages,
        prefill_tokens_per_s=report.prefill_tokens_per_s or None,
        decode_s_per_sequence=report.decode_s_per_sequence or None,
    )
