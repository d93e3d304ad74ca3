from __future__ import annotations

import asyncio

import pytest
from octavo_client.task_failures import one_failure


async def fail(error: Exception) -> None:
    raise error


async def run(*errors: Exception) -> None:
    with one_failure(LookupError):
        async with asyncio.TaskGroup() as group:
            for error in errors:
                group.create_task(fail(error))


async def test_one_failure_comes_by_itself() -> None:
    with pytest.raises(KeyError, match="a"):
        await run(KeyError("a"), IndexError("b"))


async def test_failures_of_other_kinds_stay_in_their_group() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await run(KeyError("a"), ValueError("b"))
    assert {type(each) for each in raised.value.exceptions} == {KeyError, ValueError}


async def test_success_is_left_alone() -> None:
    await run()
