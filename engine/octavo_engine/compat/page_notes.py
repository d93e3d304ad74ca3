"""Tells the feed which tokens the pages of one request hold, as it goes."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.v1 import engine_pb2

from octavo_engine.compat.page_ledger import PageTrail
from octavo_engine.compat.step_feed import StepFeed


class PageNotes:
    """The pages of one request: its prompt's at once, those of its output as they fill.

    Args:
        feed: what is told.
        info: facts about the engine; without a root of page hashes there is nothing to tell.
        prompt_token_ids: the prompt.
        num_choices: choices, which share the prompt's pages.
    """

    def __init__(
        self, feed: StepFeed, info: engine_pb2.EngineInfo, prompt_token_ids: Sequence[int], num_choices: int
    ) -> None:
        self.num_choices = num_choices
        self._feed = feed
        self._trails: list[PageTrail] = []
        if info.page_hash_root:
            trail = PageTrail(info.page_hash_root, info.model.page_size)
            feed.note(trail.extend(prompt_token_ids))
            self._trails = [trail.fork() for _ in range(num_choices)]

    def add(self, choice: int, token_id: int) -> None:
        """Add an output token."""
        if self._trails and (pages := self._trails[choice].extend((token_id,))):
            self._feed.note(pages)
