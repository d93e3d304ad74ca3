from __future__ import annotations

import asyncio
import json
import urllib.request

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from octavo.v1 import admin_pb2
from support.quiet_stream import quiet_stream_lasts
from support.router_client import request

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
SERVICE = "octavo.v1.InferenceService"


async def spans_of(router):
    await asyncio.to_thread(router.router._provider.force_flush)
    return {span.name: span for span in router.spans.get_finished_spans()}


async def test_trace_of_the_client_goes_on_through_the_router_to_the_engine(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    answer = await router.generate([20] * 12, metadata=(("traceparent", TRACEPARENT), ("x-request-id", "r1")))
    spans = await spans_of(router)
    generate, route, tokenize = (spans[name] for name in ("router.generate", "router.route", "router.tokenize"))
    assert answer.accepted.trace_id == TRACE_ID
    assert f"{generate.context.trace_id:032x}" == TRACE_ID
    assert f"{generate.parent.span_id:016x}" == "b7ad6b7169203331"
    assert route.parent.span_id == tokenize.parent.span_id == generate.context.span_id
    assert engine.submits[0].traceparent == f"00-{TRACE_ID}-{generate.context.span_id:016x}-01"


async def test_spans_that_are_made_in_the_end_say_when_it_was(new_engine, new_router):
    router = await new_router(await new_engine("e1"))
    await router.generate([20] * 12)
    spans = await spans_of(router)
    generate, route, tokenize = (spans[name] for name in ("router.generate", "router.route", "router.tokenize"))
    assert generate.start_time <= tokenize.start_time <= tokenize.end_time
    assert tokenize.start_time <= route.start_time <= route.end_time
    first_token = next(event for event in generate.events if event.name == "octavo.first_token")
    assert route.start_time <= first_token.timestamp <= generate.end_time
    assert tokenize.attributes["gen_ai.usage.input_tokens"] == 12


async def test_tokenizing_that_fails_is_told_too(new_engine, new_router):
    router = await new_router(await new_engine("e1"))
    with pytest.raises(grpc.aio.AioRpcError):
        await router.generate([20, 2**31])
    spans = await spans_of(router)
    assert spans["router.tokenize"].end_time >= spans["router.tokenize"].start_time


async def test_spans_say_what_was_asked_and_why_the_engine_was_chosen(new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2")]
    router = await new_router(*engines)
    answer = await router.generate([20] * 12, metadata=(("x-request-id", "r1"),))
    spans = await spans_of(router)
    generate = spans["router.generate"].attributes
    assert generate["gen_ai.usage.input_tokens"] == 12
    assert generate["gen_ai.usage.output_tokens"] == 8
    assert generate["gen_ai.response.finish_reasons"] == ("length",)
    assert generate["octavo.request_id"] == "r1"
    assert generate["octavo.ttft_s"] > 0
    route = spans["router.route"].attributes
    assert route["octavo.route.reason"] == answer.accepted.reason
    assert route["octavo.prompt_pages"] == 3
    candidates = json.loads(route["octavo.route.candidates"])
    assert {candidate["engine_id"] for candidate in candidates} == {"e1", "e2"}
    assert {"prefill_s", "pool_s", "decode_s", "cost_s"} <= candidates[0].keys()


async def test_log_at_debug_level_has_every_term_of_a_decision(new_engine, new_router):
    router = await new_router(await new_engine("e1"), await new_engine("e2"))
    with structlog.testing.capture_logs() as logs:
        answer = await router.generate([20] * 12, metadata=(("x-request-id", "r1"),))
    (routed,) = (line for line in logs if line["event"] == "request_routed")
    assert (routed["log_level"], routed["request_id"], routed["reason"]) == ("debug", "r1", answer.accepted.reason)
    candidates = json.loads((await spans_of(router))["router.route"].attributes["octavo.route.candidates"])
    assert routed["candidates"] == candidates


async def test_request_that_moves_keeps_one_trace(new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2")]
    router = await new_router(*engines)
    for engine in engines:
        engine.hold_at = 2
    call = router.inference.Generate(request(max_tokens=4), metadata=(("traceparent", TRACEPARENT),))
    home = (await call.read()).accepted.engine_id
    await call.read()  # the first token
    lost, other = engines if home == "e1" else engines[::-1]
    other.release()
    await lost.kill()
    while await call.read() is not grpc.aio.EOF:
        pass
    assert other.submits[0].traceparent == lost.submits[0].traceparent
    generate = (await spans_of(router))["router.generate"]
    assert [event.name for event in generate.events] == ["octavo.first_token", "octavo.moved"]
    assert generate.attributes["octavo.num_moves"] == 1


async def test_prompt_text_is_in_no_span_and_no_log(new_engine, new_router, capsys):
    router = await new_router(await new_engine("e1"))
    await router.generate([("user", "my secret words")], stop=["hidden stop"])
    text = capsys.readouterr().out
    assert "request_finished" in text
    for span in (await spans_of(router)).values():
        text += span.to_json()
    assert "secret" not in text
    assert "hidden" not in text


async def test_metrics_count_requests_and_engines(new_engine, new_router):
    router = await new_router(await new_engine("e1"))
    await router.generate([20] * 12)
    await router.generate([20] * 12)
    with pytest.raises(grpc.aio.AioRpcError):
        await router.generate(n=9)

    def scrape():
        with urllib.request.urlopen(f"http://{router.router.bound.metrics_address}/metrics") as page:
            return page.read().decode()

    lines = (await asyncio.to_thread(scrape)).splitlines()
    assert 'octavo_router_requests_total{outcome="length"} 2.0' in lines
    assert 'octavo_router_requests_total{outcome="invalid_argument"} 1.0' in lines
    assert "octavo_router_prompt_tokens_total 24.0" in lines
    assert "octavo_router_cached_tokens_total 8.0" in lines
    assert "octavo_router_output_tokens_total 16.0" in lines
    assert "octavo_router_requests_in_flight 0.0" in lines


async def test_health_is_ready_only_while_an_engine_serves(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    stub = health_pb2_grpc.HealthStub(router.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    states = health_pb2.HealthCheckResponse
    while (await watch.read()).status != states.SERVING:
        pass
    await engine.kill()
    while (await watch.read()).status != states.NOT_SERVING:
        pass
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == states.SERVING


async def test_reflection_lists_the_public_service(new_router):
    router = await new_router()
    stub = reflection_pb2_grpc.ServerReflectionStub(router.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    listed = (await call.read()).list_services_response.service
    assert SERVICE in {service.name for service in listed}
    assert "octavo.v1.AdminService" not in {service.name for service in listed}


async def test_drain_refuses_new_requests_and_lets_running_ones_end(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    engine.hold_at = 2
    running = asyncio.ensure_future(router.generate(max_tokens=4))
    await engine.until(lambda: len(engine.submits) == 1)
    watch = health_pb2_grpc.HealthStub(router.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    draining = asyncio.ensure_future(router.admin.Drain(admin_pb2.DrainRequest(grace_ms=5000)))
    while (await watch.read()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
        pass
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.generate()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    engine.release()
    assert len((await running).token_ids[0]) == 4
    assert (await draining).num_finished == 1


async def test_clients_that_ping_while_they_wait_are_left_alone(new_router):
    router = await new_router()
    assert await quiet_stream_lasts(router.address)
