from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from octavo.model_directory import ModelNotFound, resolve_model
from octavo_client.stack import LocalStack
from octavo_client.stack_options import StackOptions


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    """A router, two engines with the default model and Redis, all real processes; tests leave it whole."""
    try:
        resolve_model()
    except ModelNotFound:
        pytest.fail("the default model is not prepared: run `make model`, which `make test` does first")
    options = StackOptions(state_directory=tmp_path_factory.mktemp("stack"), num_engines=2, threads=1)
    async with LocalStack(options) as running:
        yield running
