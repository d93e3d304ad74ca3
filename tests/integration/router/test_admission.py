"""Requests that wait in a router because the engines' load says so; scripted engines over real sockets."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from octavo.v1 import engine_pb2, types_pb2
from support.router_client import Answer, request


async def set_load(router, engine, *, waiting_tokens):
    """Let an engine report so much waiting work, and wait until the router knows."""
    engine.load.MergeFrom(engine_pb2.Load(num_running=1, prefill_tokens_per_s=1000.0))
    engine.load.waiting_tokens = waiting_tokens
    await engine.send_load()
    known = router.router.fleet.engine(engine.engine_id)
    await router.until(lambda: known.load.report.waiting_tokens == waiting_tokens)


@pytest.fixture
async def busy(new_engine, new_router):
    """An engine with too much to do, and a router that knows."""
    engine = await new_engine("e1")

    async def start(**options):
        router = await new_router(engine, **options)
        await set_load(router, engine, waiting_tokens=1_000_000)
        return router, engine

    return start


def ask(router, *, tenant="a", priority=types_pb2.PRIORITY_UNSPECIFIED, timeout_s=20.0, **options):
    """Begin a request."""
    message = request(**options)
    message.priority = priority
    return router.inference.Generate(message, metadata=(("x-tenant", tenant),), timeout=timeout_s)


async def answer_of(call):
    answer = Answer()
    async for response in call:
        answer.add(response)
    return answer


async def queued(router, num_requests):
    await router.until(lambda: len(router.router.admission.turns.queue) == num_requests)


async def spans_of(router):
    """Return the router's spans by name, the request's own last."""

    def spans():
        return {span.name: span for span in router.spans.get_finished_spans()}

    await router.until(lambda: "router.generate" in spans())
    return spans()


async def error_of(call):
    """Return the code, the reason and the time to retry of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer_of(call)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in getattr(rpc_status.from_call(caught.value), "details", ()):
        detail.Unpack(info)
        detail.Unpack(retry)
    return caught.value.code(), info.reason, retry.retry_delay.ToMilliseconds()


async def test_request_waits_in_the_router_until_an_engine_has_room(busy):
    router, engine = await busy()
    reading = asyncio.create_task(answer_of(ask(router)))
    await queued(router, 1)
    assert engine.submits == []
    await set_load(router, engine, waiting_tokens=0)
    answer = await reading
    assert answer.finished[0].reason == types_pb2.FINISH_REASON_LENGTH
    spans = await spans_of(router)
    assert spans["router.queue"].parent.span_id == spans["router.generate"].context.span_id
    waited_s = (spans["router.queue"].end_time - spans["router.queue"].start_time) / 1e9
    assert spans["router.generate"].attributes["octavo.queue_s"] == pytest.approx(waited_s, rel=0.5)


async def test_request_that_need_not_wait_has_no_span_for_it(new_engine, new_router):
    router = await new_router(await new_engine("e1"))
    await router.generate()
    spans = await spans_of(router)
    assert "router.queue" not in spans
    assert spans["router.generate"].attributes["octavo.queue_s"] < 0.05


async def test_one_request_of_another_tenant_does_not_wait_for_a_flood(busy):
    router, engine = await busy(fair_quantum_tokens=1)
    flood = []
    for number in range(5):
        flood.append(ask(router, tenant="flood"))
        await queued(router, number + 1)
    other = ask(router, tenant="other")
    await queued(router, 6)
    await set_load(router, engine, waiting_tokens=0)
    await asyncio.gather(*(answer_of(each) for each in [*flood, other]))
    assert b"other" in [submit.cache_salt for submit in engine.submits[:3]], "it may be in its turn behind one"


async def test_interactive_requests_overtake_batch_requests(busy):
    router, engine = await busy()
    jobs = [ask(router, tenant="jobs", priority=types_pb2.PRIORITY_BATCH) for _ in range(2)]
    await queued(router, 2)
    person = ask(router, tenant="person", priority=types_pb2.PRIORITY_INTERACTIVE)
    await queued(router, 3)
    await set_load(router, engine, waiting_tokens=0)
    await asyncio.gather(*(answer_of(each) for each in [*jobs, person]))
    assert [submit.cache_salt for submit in engine.submits] == [b"person", b"jobs", b"jobs"]


async def test_deadline_that_passes_in_the_queue_is_told_and_no_engine_hears_of_it(busy):
    router, engine = await busy(max_timeout_s=0.2)
    code, reason, _ = await error_of(ask(router))
    assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_in_queue")
    assert engine.submits == []


async def test_interactive_request_is_given_up_after_the_longest_wait(busy):
    router, _ = await busy(max_queue_s=0.1)
    code, reason, retry_ms = await error_of(ask(router))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_too_long")
    assert retry_ms > 0


async def test_client_that_vanishes_from_the_queue_leaves_nothing_behind(busy):
    router, engine = await busy()
    call = ask(router)
    await queued(router, 1)
    call.cancel()
    await queued(router, 0)
    await router.until(lambda: router.router.admission.num_in_flight == 0)
    await set_load(router, engine, waiting_tokens=0)
    await router.generate()
    assert len(engine.submits) == 1


async def test_full_queue_refuses_within_ten_milliseconds_and_says_when_to_come_back(busy):
    router, _ = await busy(max_queued_tokens=10)
    first = ask(router)
    await queued(router, 1)
    times_s = []
    for _ in range(10):
        started_at = time.perf_counter()
        code, reason, retry_ms = await error_of(ask(router, prompt="hello world " * 50))
        times_s.append(time.perf_counter() - started_at)
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full")
        assert retry_ms > 0
    assert min(times_s) < 0.010, "over a real socket, client included; the machine may be busy with other things"
    first.cancel()


async def test_drain_lets_those_who_wait_have_their_turn(busy):
    router, engine = await busy()
    reading = asyncio.create_task(answer_of(ask(router)))
    await queued(router, 1)
    draining = asyncio.create_task(router.router.drain(10.0))
    await router.until(lambda: router.router.admission.is_draining)
    await set_load(router, engine, waiting_tokens=0)
    assert (await reading).finished[0].reason == types_pb2.FINISH_REASON_LENGTH
    assert await draining == 0


async def test_only_one_of_two_engines_needs_room(new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2")]
    router = await new_router(*engines)
    await set_load(router, engines[0], waiting_tokens=1_000_000)
    await router.generate()
    assert [len(engine.submits) for engine in engines] == [0, 1]


async def test_metrics_tell_of_waits_and_refusals(busy):
    router, engine = await busy()
    metrics = router.router._metrics
    reading = asyncio.create_task(answer_of(ask(router)))
    await queued(router, 1)
    assert metrics.queued.labels("interactive")._value.get() == 1
    await set_load(router, engine, waiting_tokens=0)
    await reading
    assert metrics.queued.labels("interactive")._value.get() == 0
    assert metrics.queue_wait.labels("interactive")._sum.get() > 0
