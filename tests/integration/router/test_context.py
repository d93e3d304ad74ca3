"""Engines whose contexts differ in length."""

from __future__ import annotations

import grpc
import pytest
from octavo.errors import from_rpc_error
from octavo.v1 import engine_pb2, types_pb2
from support.router_client import Answer, request


@pytest.fixture
async def short(new_engine):
    return await new_engine("short", max_model_len=64)


@pytest.fixture
async def long(new_engine):
    return await new_engine("long", max_model_len=512)


def prompts(length, first=30):
    """Different prompts: equal ones would all go to the same engine."""
    return [[first + index] * length for index in range(12)]


async def homes(router, prompts, **options):
    return {(await router.generate(prompt, **options)).accepted.engine_id for prompt in prompts}


async def test_request_goes_where_all_of_its_output_fits(short, long, new_router):
    router = await new_router(short, long)
    assert await homes(router, prompts(40), max_tokens=24) == {"short", "long"}
    assert await homes(router, prompts(40, first=60), max_tokens=25) == {"long"}


async def test_request_that_fits_nowhere_goes_to_the_longest_context(short, long, new_router):
    router = await new_router(short, long)
    assert await homes(router, prompts(8), max_tokens=2000) == {"long"}
    assert {submit.sampling.max_tokens for submit in long.submits} == {504}


async def test_request_is_refused_rather_than_cut(short, long, new_router):
    router = await new_router(short, long)
    long.rejection = engine_pb2.Rejected(code=8, reason="queue_full", message="full", retry_after_ms=250)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.generate([30] * 40, max_tokens=100)
    assert from_rpc_error(caught.value).reason == "queue_full"
    assert short.submits == []


async def test_requests_without_a_limit_are_shared_by_engines_whose_pools_differ(new_engine, new_router):
    engines = [await new_engine("e1", max_model_len=512), await new_engine("e2", max_model_len=500)]
    router = await new_router(*engines)
    assert await homes(router, prompts(8), max_tokens=0) == {"e1", "e2"}


async def test_request_without_a_limit_does_not_go_where_little_room_is_left(short, long, new_router):
    router = await new_router(short, long)
    assert await homes(router, prompts(50), max_tokens=0) == {"long"}


async def test_stream_moves_to_a_shorter_context_when_no_other_is_left(short, long, new_router):
    router = await new_router(short, long)
    long.hold_at = 5
    call = router.inference.Generate(request([30] * 16, max_tokens=100), timeout=20)
    answer = Answer()
    while sum(map(len, answer.token_ids.values())) < 5:
        answer.add(await call.read())
    await long.kill()
    while (response := await call.read()) is not grpc.aio.EOF:
        answer.add(response)
    assert answer.accepted.engine_id == "long"
    assert len(answer.token_ids[0]) == 48
    assert answer.finished[0].reason == types_pb2.FINISH_REASON_LENGTH
    assert answer.finished[0].engine_id == "short"
