"""Says in one line where the time of a generation went."""

from __future__ import annotations

from octavo_client.values import Completion


def tokens_per_second(completion: Completion) -> float | None:
    """Return the rate after the first token, output tokens/s; None for fewer than two tokens."""
    if completion.ttft_s is None or completion.usage.output_tokens < 2 * len(completion.choices):
        return None
    decoded = completion.usage.output_tokens - len(completion.choices)
    duration = completion.duration_s - completion.ttft_s
    return decoded / duration if duration > 0 else None


def summary(completion: Completion, page_size: int | None = None) -> str:
    """Return the line under an answer.

    Args:
        completion: what came.
        page_size: tokens in one page, to speak of pages instead of tokens; None if not known.
    """
    usage = completion.usage
    parts = [f"{usage.output_tokens} tokens in {completion.duration_s:.2f} s"]
    if completion.ttft_s is not None:
        parts.append(f"first after {completion.ttft_s * 1000:.0f} ms")
    if (rate := tokens_per_second(completion)) is not None:
        parts.append(f"then {rate:.0f} tokens/s")
    if page_size:
        parts.append(f"{usage.cached_tokens // page_size} of {usage.prompt_tokens // page_size} prompt pages reused")
    else:
        parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens reused")
    parts.append(completion.engine_id)
    if completion.num_moves:
        parts.append(f"moved {completion.num_moves} times")
    return ", ".join(parts)
