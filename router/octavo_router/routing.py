"""Decides which engine gets a prompt: matches its pages against the directory and ranks the engines by cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from octavo.page_hash import salted_root, token_bytes

from octavo_router.fleet import Engine, Fleet
from octavo_router.kind import EngineKind
from octavo_router.load import Placement, PlacementNote
from octavo_router.policy import Cost, EngineView, Weights, rank
from octavo_router.prefix_memo import PrefixMemo
from octavo_router.prefix_pages import PrefixPages

# Prompts that share so many of the first tokens that no engine holds tend to the same engine.
_KEY_TOKENS: Final = 64
# For the hashes of prefixes that engines hold; with pages of 16 tokens enough for two and a half million tokens.
_MEMO_BYTES: Final = 16 << 20


class Prompt:
    """Prompt token ids with their page hashes."""

    def __init__(self, token_ids: Sequence[int], *, cache_salt: bytes = b"", memo: PrefixMemo | None = None) -> None:
        self.token_ids = token_ids
        self.cache_salt = cache_salt
        self._memo = PrefixMemo(0) if memo is None else memo
        self._pages_by_root: dict[tuple[bytes, int], PrefixPages] = {}

    def __len__(self) -> int:
        return len(self.token_ids)

    def num_pages(self, page_size: int) -> int:
        """Full pages."""
        return len(self.token_ids) // page_size

    def hashes(self, root: bytes, page_size: int, *, first: int = 0) -> Sequence[int]:
        """Return the short hashes of the full pages but the first ones, under an engine's root, made when they are read.

        There are none without a root: such an engine caches nothing.
        """
        return self._pages(root, page_size).after(first) if root else ()

    def reusable(self, root: bytes, page_size: int) -> Iterator[Sequence[int]]:
        """Return the short hashes of the pages that an engine may take from its cache, in runs that are made when read.

        The last prompt token is always computed, and so is its page.
        """
        if not root:
            return iter(())
        return self._pages(root, page_size).runs((len(self) - 1) // page_size)

    def key(self, num_known: int) -> bytes:
        """Name the prompt by what follows its first `num_known` tokens: siblings share that, and no one else does."""
        return self.cache_salt + token_bytes(self.token_ids[num_known : num_known + _KEY_TOKENS])

    def _pages(self, root: bytes, page_size: int) -> PrefixPages:
        known = self._pages_by_root.get((root, page_size))
        if known is None:
            known = PrefixPages(salted_root(root, self.cache_salt), self.token_ids, page_size, self._memo)
            self._pages_by_root[root, page_size] = known
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Engines for one prompt from best to worst, and why."""

    prompt_pages: int
    ranked: Sequence[Cost]

    @property
    def reason(self) -> str:
        """One line for people."""
        if not self.ranked:
            return "no engine"
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
        self._memo = PrefixMemo(_MEMO_BYTES)

    def prompt(self, token_ids: Sequence[int], *, cache_salt: bytes) -> Prompt:
        """Return a prompt that shares what is remembered of those before it."""
        return Prompt(token_ids, cache_salt=cache_salt, memo=self._memo)

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
        longest = max((engine.max_model_len for engine in serving), default=0)
        least_len = max(min(len(prompt) + room, longest), len(prompt) + num_committed + 1)
        engines = [
            engine
            for engine in serving
            if engine.max_model_len >= least_len and (engine.engine_id, engine.epoch) not in excluded
        ]
        if not engines:
            return Route(prompt_pages=0, ranked=())
        views = self._views(prompt, engines, self._clock())
        prompt_pages = prompt.num_pages(min(view.page_size for view in views))
        key = prompt.key(max(view.matched_pages * view.page_size for view in views))
        ranked = rank(views, prompt_len=len(prompt) + num_committed, key=key, weights=self._weights)
        return Route(prompt_pages=prompt_pages, ranked=ranked)

    def place(
        self,
        engine: Engine,
        prompt: Prompt,
        cost: Cost,
        *,
        stream_id: int,
        num_sequences: int = 1,
        output_tokens: int = 0,
    ) -> Placement:
        """Note that a prompt was sent to an engine, for this router and the others. `settle` is due soon.

        Args:
            engine: where it went.
            prompt: the prompt.
            cost: what it was expected to cost there.
            stream_id: its number on the link.
            num_sequences: its choices.
            output_tokens: what all of them are expected to give.
        """
        note = PlacementNote(
            engine_id=engine.engine_id,
            router_id=self.fleet.router_id,
            stream_id=stream_id,
            tokens=cost.uncached_tokens,
            pages=prompt.hashes(engine.page_hash_root, engine.page_size, first=cost.matched_pages),
            num_sequences=num_sequences,
            output_tokens=output_tokens,
        )
        self._note(note)
        return self.fleet.place(engine, note)

    def settle(self) -> None:
        """Hash the pages of what was placed, unless somebody has looked for them: better now than when the next one comes."""
        self.fleet.directory.settle()

    def _views(self, prompt: Prompt, engines: Sequence[Engine], now: float) -> list[EngineView]:
        by_root: dict[tuple[bytes, int], dict[str, int]] = {}
        views = []
        for engine in engines:
            root, page_size = engine.page_hash_root, engine.page_size
            matched = by_root.get((root, page_size))
            if matched is None:
                matched = self.fleet.directory.match(prompt.reusable(root, page_size), now)
                by_root[root, page_size] = matched
            load, report = engine.load, engine.load.report
            recent_tokens, recent_output_tokens = load.recent(now)
            views.append(
                EngineView(
                    engine_id=engine.engine_id,
                    matched_pages=matched.get(engine.engine_id, 0),
                    page_size=page_size,
                    waiting_tokens=load.waiting_tokens(now),
                    num_running=load.num_running(now),
                    pages_in_use=report.pages_in_use,
                    num_pages=engine.num_pages,
                    prefill_tokens_per_s=report.prefill_tokens_per_s or None,
                    decode_s_per_sequence=report.decode_s_per_sequence or None,
                    recent_tokens=recent_tokens,
                    recent_output_tokens=recent_output_tokens,
                )
            )
        return views
