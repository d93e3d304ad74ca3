"""Brings the trouble of a schedule over a fleet, and mends it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from chaos.fleet import ChaosEngine, Fleet, Redis
from chaos.schedule import Episode, Fault, Trouble
from support.fault_proxy import DOWN

SLOW_NETWORK_S: Final = 0.05
_STOP_GRACE_S: Final = 20.0


async def bring(fleet: Fleet, episode: Episode) -> None:
    """Let an episode happen; return when all of it is mended and the fleet is whole again."""
    async with asyncio.TaskGroup() as group:
        for trouble in episode:
            group.create_task(_bring_one(fleet, trouble))
    await fleet.whole()


async def _bring_one(fleet: Fleet, trouble: Trouble) -> None:
    await asyncio.sleep(trouble.after_s)
    if trouble.engine is None:
        async with _redis_trouble(fleet.redis, trouble.fault):
            await asyncio.sleep(trouble.hold_s)
    else:
        async with engine_trouble(fleet.engines[trouble.engine], trouble.fault):
            await asyncio.sleep(trouble.hold_s)


@asynccontextmanager
async def engine_trouble(engine: ChaosEngine, fault: Fault) -> AsyncIterator[None]:
    """Have an engine in trouble inside the block; an engine that ended is started again behind it."""
    if fault in {Fault.KILL, Fault.DRAIN}:
        await _end(engine, fault)
        yield
        await engine.start()
    elif fault is Fault.HANG:
        engine.child.pause()
        yield
        engine.child.resume()
    elif fault is Fault.HANG_CORE:
        engine.signal_core(signal.SIGSTOP)
        yield
        engine.signal_core(signal.SIGCONT)
    else:
        _break_network(engine, fault)
        yield
        engine.proxy.heal()


async def _end(engine: ChaosEngine, fault: Fault) -> None:
    if fault is Fault.KILL:
        await engine.kill()
    else:
        status = await engine.stop(_STOP_GRACE_S)
        assert status == 0, f"{engine.name} did not drain: it ended with {status}"


def _break_network(engine: ChaosEngine, fault: Fault) -> None:
    if fault is Fault.CUT:
        engine.proxy.cut()
    elif fault is Fault.HALF_OPEN:
        engine.proxy.half_open()
    elif fault is Fault.HALF_OPEN_DOWN:
        engine.proxy.half_open(DOWN)
    elif fault is Fault.DELAY:
        engine.proxy.delay(SLOW_NETWORK_S)
    else:
        raise AssertionError(fault)


@asynccontextmanager
async def _redis_trouble(redis: Redis, fault: Fault) -> AsyncIterator[None]:
    if fault is Fault.REDIS_FLUSH:
        await redis.flush()
        yield
    elif fault is Fault.REDIS_PAUSE:
        assert redis.child is not None
        redis.child.pause()
        yield
        redis.child.resume()
    else:
        await redis.kill()
        yield
        await redis.start()
