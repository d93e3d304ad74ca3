from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
from octavo.v1 import types_pb2
from octavo_router.tokenizer import Tokenizer
from support.router_client import request


async def test_vanished_client_cancels_at_the_engine_at_once(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    engine.hold_at = 3
    call = router.inference.Generate(request(max_tokens=50), timeout=20)
    while not (await call.read()).HasField("chunk"):
        pass
    call.cancel()
    await engine.until(lambda: engine.cancels == [engine.submits[0].stream_id], 1.0)
    assert router.router.admission.num_in_flight == 0


async def test_client_that_closes_its_connection_cancels(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    engine.hold_at = 0
    reading = asyncio.ensure_future(router.generate(max_tokens=50))
    await engine.until(lambda: len(engine.submits) == 1)
    await router.channel.close()
    await engine.until(lambda: len(engine.cancels) == 1, 1.0)
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await reading


async def test_client_deadline_cancels_and_is_told_to_the_engine(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    engine.hold_at = 3
    try:  # both ends watch the same deadline, and either may be first to see it pass
        answer = await router.generate(max_tokens=50, timeout_s=0.4)
        assert answer.finished[0].reason == types_pb2.FINISH_REASON_DEADLINE
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017
    assert 0 < engine.submits[0].timeout_ms <= 400
    await engine.until(lambda: len(engine.cancels) == 1, 1.0)


async def test_longest_deadline_of_the_router_ends_the_choice(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine, max_timeout_s=0.3)
    engine.hold_at = 3
    answer = await router.generate(max_tokens=50)
    assert len(answer.token_ids[0]) == 3
    assert answer.finished[0].reason == types_pb2.FINISH_REASON_DEADLINE
    await engine.until(lambda: len(engine.cancels) == 1, 1.0)


async def test_choice_that_met_its_stop_string_is_cancelled_alone(new_engine, new_router, model_directory):
    tokenizer = Tokenizer(model_directory)
    engine = await new_engine("e1")
    router = await new_router(engine)
    fox, dog = tokenizer.encode_text("the quick brown fox jumps over"), [60 + index for index in range(30)]
    engine.script = lambda _submit, choice: [*fox, *dog] if choice == 0 else dog
    engine.hold_at = 25
    answering = asyncio.ensure_future(router.generate(max_tokens=30, n=2, stop=["brown fox"]))
    await engine.until(lambda: engine.choice_cancels)
    assert engine.choice_cancels == [(engine.submits[0].stream_id, 0)]
    engine.release()
    answer = await answering
    assert answer.text[0] == "the quick "
    assert answer.token_ids[1] == dog
    assert {finished.index: finished.reason for finished in answer.finished} == {
        0: types_pb2.FINISH_REASON_STOP,
        1: types_pb2.FINISH_REASON_LENGTH,
    }
    assert engine.cancels == [], "the request has ended by itself"
