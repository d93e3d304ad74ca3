"""Sets up structlog for a process: JSON lines on stdout, or a readable form on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from octavo.attributes import Log


def configure_logs(*, level: str = "info", form: Literal["json", "console", "auto"] = "auto") -> None:
    """Configure structlog and route the standard library's loggers through it.

    Args:
        level: least severe level to show: debug, info, warning or error.
        form: "json", "console", or "auto" (console when stdout is a terminal).
    """
    renderer: Processor
    if form == "console" or (form == "auto" and sys.stdout.isatty()):
        renderer = structlog.dev.ConsoleRenderer()
    else:
        renderer = structlog.processors.JSONRenderer()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_ids,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _add_trace_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid and Log.TRACE_ID not in event:
        event[Log.TRACE_ID] = f"{context.trace_id:032x}"
        event[Log.SPAN_ID] = f"{context.span_id:016x}"
    return event
