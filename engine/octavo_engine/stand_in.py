"""What cores without a model have in common: tokens are arithmetic, everything else of the engine is real.

Tests and benchmarks make such a core of `core.main` and a `load` of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from octavo_engine.config import EngineConfig
from octavo_engine.runner import Loaded, ModelFacts, Runner

_NEWEST: Final = 8


class StandInRunner:
    """Base of a runner that has nothing to prepare and nothing to give back; how it launches a step is its own."""

    depth = 1
    is_warm = True

    def warm_next(self) -> None:
        """Never asked: it is warm."""
        raise AssertionError("warm already")

    def close(self) -> None:
        """Nothing to give back."""


def stand_in(
    runner: Runner,
    config: EngineConfig,
    *,
    name: str,
    revision: str,
    tokenizer_revision: str,
    max_model_len: int,
    vocab_size: int,
    eos_token_id: int,
    num_pages: int = 1024,
) -> Loaded:
    """Return a runner with the facts of its pretended model: an exact one on a CPU. The configuration's values come first."""
    facts = ModelFacts(
        name=config.model_name or name,
        revision=revision,
        tokenizer_revision=tokenizer_revision,
        max_model_len=config.max_model_len or max_model_len,
        vocab_size=vocab_size,
        eos_token_ids=(eos_token_id,),
        page_size=config.page_size,
        num_pages=config.num_pages or num_pages,
        backend="torch",
        device="cpu",
        dtype="float32",
        numerics="exact",
    )
    return Loaded(runner=runner, facts=facts)


def mixed(tokens: Sequence[int], end: int, seed: int) -> int:
    """Return a large number to choose the token at position `end` by.

    It depends on the tokens before, the position and the seed, as a model's choice does: what a resumed request gets wrong
    shows.
    """
    state = seed
    for value in (*tokens[max(0, end - _NEWEST) : end], end):
        state = (state * 1_000_003 + value) % (2**61 - 1)
    return state
