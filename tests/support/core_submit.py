"""A request as the front hands it to the core, for tests that need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.page_hash import token_bytes
from octavo_engine import messages


def submit(key: int, prompt: Sequence[int] = (11, 12), max_tokens: int = 3, **fields: Any) -> messages.Submit:
    """Return a greedy request that ignores the end of sequence; any field can be set otherwise."""
    request: dict[str, Any] = {
        "key": key,
        "prompt": token_bytes(prompt),
        "arrival_ns": 0,
        "deadline_ns": None,
        "page_hash_root": b"root-of-the-test",
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 0,
        "max_tokens": max_tokens,
        "min_tokens": 0,
        "stop_token_ids": [],
        "n": 1,
        "priority": 0,
        "committed": [],
        "finished_choices": [],
    }
    return messages.Submit(**(request | fields))
