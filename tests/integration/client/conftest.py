from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from octavo_client import OctavoClient
from support.scripted_router import ScriptedRouter, scripted_router


@pytest.fixture
async def router() -> AsyncIterator[ScriptedRouter]:
    async with scripted_router() as running:
        yield running


@pytest.fixture
async def client(router: ScriptedRouter) -> AsyncIterator[OctavoClient]:
    async with OctavoClient(router.address) as opened:
        yield opened
