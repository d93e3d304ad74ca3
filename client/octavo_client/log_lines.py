"""Reads the JSON log lines of routers and engines, for a person."""

from __future__ import annotations

import json
from typing import Any, Final

_SHOWN_APART: Final = ("timestamp", "level", "event")
_HIDDEN: Final = ("trace_id", "span_id")


def loading_line(line: str) -> str:
    """Return what a log line says about loading; empty if it says nothing.

    >>> loading_line('{"event": "model_loading", "stage": "load weights", "done": 0.25}')
    'load weights, 25 %'
    """
    event = _parse(line)
    if event is None or "stage" not in event or not isinstance(event.get("done"), int | float):
        return ""
    return f"{event['stage']}, {100 * event['done']:.0f} %"


def readable_line(line: str) -> str:
    """Return a log line in a form for the terminal; a line that is no JSON object as it is.

    >>> readable_line('{"event": "redis_up", "level": "info", "timestamp": "2026-01-02T03:04:05.678Z", "port": 6379}')
    '03:04:05 info redis_up port=6379'
    """
    event = _parse(line)
    if event is None:
        return line
    clock = str(event.get("timestamp", ""))[11:19]
    head = (clock, str(event.get("level", "")), str(event.get("event", "")))
    facts = [f"{key}={value}" for key, value in event.items() if key not in (*_SHOWN_APART, *_HIDDEN)]
    return " ".join(part for part in (*head, *facts) if part)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
