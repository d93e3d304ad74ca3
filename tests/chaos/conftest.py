from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from chaos.fleet import Fleet
from chaos.model import write_tiny_model


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> AsyncIterator[Fleet]:
    """Tests leave it whole."""
    computes = os.environ.get("OCTAVO_CHAOS_MODEL", "arithmetic")
    async with Fleet(tmp_path_factory.mktemp("fleet"), tiny_model, computes=computes) as fleet:
        yield fleet
