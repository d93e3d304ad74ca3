"""Lets the requests of an engine end before it stops, and hands over those that do not: one drain, however many ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog
from octavo.errors import Unavailable

from octavo_engine.sequence import FinishReason
from octavo_engine.switchboard import Switchboard

HAND_OVER_TIMEOUT_S: Final = 3.0
"""Time that the core gets to end what is handed over; a core in a long step is not waited for."""

_log = structlog.get_logger()


class Draining:
    """A drain that any number may ask for, each with a grace of its own; the shortest decides.

    What a drain begins it finishes, although the one who asked for it may have gone away.

    Args:
        switchboard: the live requests.
        leave_service: tells the world that the engine takes nothing more; called once.
        hurried: set when nobody will wait any longer.
    """

    def __init__(
        self, switchboard: Switchboard, *, leave_service: Callable[[], Awaitable[None]], hurried: asyncio.Event
    ) -> None:
        self._switchboard = switchboard
        self._leave_service = leave_service
        self._hurried = hurried
        self._leaving: asyncio.Task[None] | None = None
        self._handing_over: asyncio.Task[int] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the engine takes nothing more."""
        return self._leaving is not None

    async def drain(self, grace_s: float) -> tuple[int, int]:
        """Take nothing new, let requests end for the grace, hand the rest over.

        Returns:
            Of the requests that lived at the call: those that ended in time, and those handed over.
        """
        if self._leaving is None:
            why = Unavailable("draining", "the engine is draining; use another one", retry_after_s=1.0)
            self._switchboard.refuse(why)
            self._leaving = _task(self._leave(), "leave_service")
        num_live, is_late = len(self._switchboard), self._handing_over is not None
        await asyncio.shield(self._leaving)
        await self._idle_within(grace_s)
        if len(self._switchboard) and self._handing_over is None:
            self._handing_over = _task(self._hand_over(), "hand_over")
        num_handed_over = 0
        if self._handing_over is not None:
            num_handed_over = await asyncio.shield(self._handing_over)
        if is_late:
            num_handed_over = num_live
        _log.info("engine_drained", num_finished=num_live - num_handed_over, num_handed_over=num_handed_over)
        return num_live - num_handed_over, num_handed_over

    async def close(self) -> None:
        """Stop what is still going on."""
        tasks = [task for task in (self._leaving, self._handing_over) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self) -> None:
        _log.info("engine_draining", num_requests=len(self._switchboard))
        await self._leave_service()

    async def _hand_over(self) -> int:
        num_left = self._switchboard.hand_off()
        await self._idle_within(HAND_OVER_TIMEOUT_S)
        self._switchboard.end_all(FinishReason.HANDOFF)  # whatever a core in a long step has not ended
        return num_left

    async def _idle_within(self, grace_s: float) -> None:
        waits = [asyncio.ensure_future(self._switchboard.idle.wait()), asyncio.ensure_future(self._hurried.wait())]
        try:
            await asyncio.wait(waits, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _task(work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    return asyncio.create_task(work, name=name)
