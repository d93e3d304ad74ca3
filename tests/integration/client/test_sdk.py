from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import grpc
import pytest
from octavo.attributes import Attribute, Event, Span
from octavo.errors import Cancelled, DeadlineExceeded, InternalError, InvalidRequest, NotFound, Overloaded, Unavailable
from octavo.v1 import inference_pb2, types_pb2
from octavo_client import (
    Accepted,
    AdminClient,
    Chunk,
    Finished,
    FinishReason,
    Message,
    OctavoClient,
    Priority,
    Sampling,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.scripted_router import Context, ScriptedRouter, accepted, chunk, engine_status, finished

Responses = AsyncIterator[inference_pb2.GenerateResponse]


async def one_token_then_nothing(_request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
    yield accepted()
    yield chunk("one", 0)
    await asyncio.Event().wait()


async def test_events_come_in_order_with_their_facts(client: OctavoClient) -> None:
    events = [event async for event in client.generate("Hi")]
    assert events == [
        Accepted(request_id="r", trace_id="", engine_id="engine-1", prompt_tokens=9, matched_pages=1, reason="why"),
        Chunk(index=0, text="Hel", position=0, num_tokens=1, token_ids=(), logprobs=()),
        Chunk(index=0, text="lo", position=1, num_tokens=1, token_ids=(), logprobs=()),
        events[-1],
    ]
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.engine_id, end.num_moves) == (FinishReason.STOP, "engine-2", 1)
    assert (end.usage.prompt_tokens, end.usage.cached_tokens, end.usage.output_tokens) == (9, 4, 2)
    assert (end.timing.queue_s, end.timing.prefill_s) == (pytest.approx(0.001), pytest.approx(2.0))


async def test_a_completion_has_the_whole_output(client: OctavoClient) -> None:
    completion = await client.generate("Hi").completion()
    assert completion.text == "Hello"
    assert completion.choices[0].finish_reason is FinishReason.STOP
    assert completion.ttft_s is not None
    assert 0 < completion.ttft_s <= completion.duration_s


async def test_choices_are_kept_apart(router: ScriptedRouter, client: OctavoClient) -> None:
    async def two(_request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
        yield accepted()
        yield chunk("a", 0, index=0, token_ids=[3], logprobs=[-0.5])
        yield chunk("x", 0, index=1, token_ids=[4], logprobs=[-1.5])
        yield finished(1, types_pb2.FINISH_REASON_LENGTH)
        yield chunk("b", 1, index=0, token_ids=[5], logprobs=[-0.25])
        yield finished(0)

    router.script = two
    completion = await client.generate(
        [1, 2], sampling=Sampling(n=2), logprobs=True, return_token_ids=True
    ).completion()
    assert [choice.text for choice in completion.choices] == ["ab", "x"]
    assert completion.choices[0].token_ids == (3, 5)
    assert completion.choices[0].logprobs == (-0.5, -0.25)
    assert completion.choices[1].finish_reason is FinishReason.LENGTH


async def test_a_request_carries_what_was_asked(router: ScriptedRouter, client: OctavoClient) -> None:
    sampling = Sampling(
        temperature=0.0, top_p=0.5, seed=7, max_tokens=3, stop=("\n",), stop_token_ids=(9,),
        frequency_penalty=0.5, presence_penalty=-1.5, repetition_penalty=1.25,
    )  # fmt: skip
    await client.generate(
        "Hi", sampling=sampling, model="tiny", priority=Priority.BATCH, request_id="mine", logprobs=True
    ).completion()
    request = router.requests[0]
    assert (request.input.text, request.model, request.logprobs) == ("Hi", "tiny", True)
    assert request.priority == types_pb2.PRIORITY_BATCH
    assert request.sampling.HasField("temperature")
    assert request.sampling.temperature == 0.0
    assert (request.sampling.seed, request.sampling.max_tokens) == (7, 3)
    assert (request.sampling.frequency_penalty, request.sampling.presence_penalty) == (0.5, -1.5)
    assert request.sampling.repetition_penalty == 1.25
    assert (list(request.sampling.stop), list(request.sampling.stop_token_ids)) == (["\n"], [9])
    assert router.metadata[0]["x-request-id"] == "mine"


async def test_what_is_not_asked_stays_absent(router: ScriptedRouter, client: OctavoClient) -> None:
    await client.generate("Hi").completion()
    sampling = router.requests[0].sampling
    assert not any(sampling.HasField(name) for name in ("temperature", "top_p", "seed", "repetition_penalty"))


async def test_a_chat_is_sent_as_messages(router: ScriptedRouter, client: OctavoClient) -> None:
    await client.chat([Message("system", "Be brief."), Message("user", "Hi")]).completion()
    sent = [(message.role, message.content) for message in router.requests[0].input.chat.messages]
    assert sent == [("system", "Be brief."), ("user", "Hi")]


async def test_a_tenant_is_named_in_every_call(router: ScriptedRouter) -> None:
    async with OctavoClient(router.address, tenant="blue") as client:
        await client.generate("Hi").completion()
    assert router.metadata[0]["x-tenant"] == "blue"


async def test_unary_methods_answer_with_values(router: ScriptedRouter, client: OctavoClient) -> None:
    assert await client.tokenize([Message("user", "Hi")]) == (5, 6, 7)
    assert router.inputs[0].WhichOneof("kind") == "chat"
    assert [(model.name, model.page_size) for model in await client.models()] == [("tiny", 4)]
    explanation = await client.explain("Hi")
    assert [candidate.engine_id for candidate in explanation.candidates] == ["engine-2", "engine-1"]


async def test_engines_are_listed_on_the_admin_port(router: ScriptedRouter) -> None:
    router.engines = [engine_status("engine-1"), engine_status("engine-2", "suspect")]
    async with AdminClient(router.address) as admin:
        engines = await admin.engines()
    assert [(engine.engine_id, engine.state, engine.age_s) for engine in engines] == [
        ("engine-1", "serving", 0.25),
        ("engine-2", "suspect", 0.25),
    ]


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("prompt_too_long", "70 tokens; at most 63", field="input.text"),
        Overloaded("too_many_requests", "try again", retry_after_s=0.25),
        NotFound("no_model", "no such model", metadata={"model": "huge"}),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("method", ["generate", "tokenize"])
async def test_errors_arrive_with_their_details(
    router: ScriptedRouter, client: OctavoClient, error: InvalidRequest | Overloaded | NotFound, method: str
) -> None:
    async def refuse(_request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
        raise error
        yield accepted()

    router.script, router.failure = refuse, error
    with pytest.raises(type(error)) as caught:
        await (client.generate("Hi").completion() if method == "generate" else client.tokenize("Hi"))
    received = caught.value
    assert (received.reason, received.message) == (error.reason, error.message)
    assert (received.field, received.retry_after_s, received.metadata) == (
        error.field,
        error.retry_after_s,
        error.metadata,
    )


async def test_an_error_in_mid_stream_comes_after_its_events(router: ScriptedRouter, client: OctavoClient) -> None:
    async def break_off(_request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
        yield accepted()
        yield chunk("one", 0)
        raise Unavailable("no_engine", "every engine died", retry_after_s=1.0)

    router.script = break_off
    generation = client.generate("Hi")
    assert isinstance(await anext(generation), Accepted)
    assert isinstance(await anext(generation), Chunk)
    with pytest.raises(Unavailable) as caught:
        await anext(generation)
    assert caught.value.reason == "no_engine"


async def test_nobody_at_the_address_is_unavailable() -> None:
    async with OctavoClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable) as caught:
            await client.generate("Hi").completion()
    assert caught.value.reason == "unavailable"


async def test_a_stream_without_its_end_is_an_error(router: ScriptedRouter, client: OctavoClient) -> None:
    async def forget_the_end(_request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
        yield accepted()
        yield chunk("one", 0)

    router.script = forget_the_end
    with pytest.raises(InternalError) as caught:
        await client.generate("Hi").completion()
    assert caught.value.reason == "stream_incomplete"


async def test_a_deadline_ends_the_stream(router: ScriptedRouter, client: OctavoClient) -> None:
    router.script = one_token_then_nothing
    with pytest.raises(DeadlineExceeded):
        await client.generate("Hi", timeout_s=0.2).completion()
    await asyncio.wait_for(router.cancelled.wait(), 5)


async def test_leaving_a_generation_cancels_it_at_the_router(router: ScriptedRouter, client: OctavoClient) -> None:
    router.script = one_token_then_nothing
    async with client.generate("Hi") as generation:
        async for event in generation:
            if isinstance(event, Chunk):
                break
    await asyncio.wait_for(router.cancelled.wait(), 5)


async def test_dropping_a_generation_cancels_it_at_the_router(router: ScriptedRouter, client: OctavoClient) -> None:
    router.script = one_token_then_nothing
    generation = client.generate("Hi")
    await anext(generation)
    del generation
    gc.collect()
    await asyncio.wait_for(router.cancelled.wait(), 5)


async def test_leaving_the_client_cancels_what_runs(router: ScriptedRouter) -> None:
    router.script = one_token_then_nothing
    async with OctavoClient(router.address) as client:
        generation = client.generate("Hi")
        await anext(generation)
    await asyncio.wait_for(router.cancelled.wait(), 5)
    with pytest.raises(Cancelled):
        await anext(generation)


async def test_a_waiting_reader_learns_of_a_cancel(router: ScriptedRouter, client: OctavoClient) -> None:
    router.script = one_token_then_nothing
    generation = client.generate("Hi")
    await anext(generation)
    await anext(generation)
    reader = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    generation.cancel()
    with pytest.raises(Cancelled):
        await reader
    assert not reader.cancelled()


async def test_cancelling_the_reader_cancels_the_request(router: ScriptedRouter, client: OctavoClient) -> None:
    router.script = one_token_then_nothing
    generation = client.generate("Hi")
    await anext(generation)
    reader = asyncio.create_task(generation.completion())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await asyncio.wait_for(router.cancelled.wait(), 5)


async def test_a_finished_generation_stays_finished(client: OctavoClient) -> None:
    generation = client.generate("Hi")
    await generation.completion()
    generation.cancel()
    with pytest.raises(StopAsyncIteration):
        await anext(generation)


async def test_a_closed_client_refuses_to_start(router: ScriptedRouter) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        OctavoClient(router.address).generate("Hi")


@pytest.fixture
def spans() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


async def test_the_router_continues_the_client_span(
    router: ScriptedRouter, spans: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    provider, exporter = spans
    async with OctavoClient(router.address, tracer=provider.get_tracer("test")) as client:
        await client.generate("secret words", model="tiny").completion()
    (span,) = exporter.get_finished_spans()
    assert span.name == Span.CLIENT_GENERATE
    traceparent = str(router.metadata[0]["traceparent"])
    assert traceparent.startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    assert span.attributes is not None
    assert span.attributes[Attribute.OUTPUT_TOKENS] == 2
    assert span.attributes[Attribute.FINISH_REASONS] == ("stop",)
    assert [event.name for event in span.events] == [Event.FIRST_TOKEN]
    assert "secret" not in span.to_json()


async def test_a_failed_generation_fails_its_span(
    router: ScriptedRouter, spans: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    provider, exporter = spans
    router.script = one_token_then_nothing
    async with OctavoClient(router.address, tracer=provider.get_tracer("test")) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("Hi", timeout_s=0.1).completion()
        abandoned = client.generate("Hi")
        await anext(abandoned)
    assert [span.status.is_ok for span in exporter.get_finished_spans()] == [False, False]


async def test_without_tracing_no_trace_context_is_sent(router: ScriptedRouter, client: OctavoClient) -> None:
    await client.generate("Hi").completion()
    assert "traceparent" not in router.metadata[0]


async def test_a_foreign_status_becomes_an_error_without_details(router: ScriptedRouter, client: OctavoClient) -> None:
    async def abort(_request: inference_pb2.GenerateRequest, context: Context) -> Responses:
        yield accepted()
        bad = (("grpc-status-details-bin", b"\xff\xff"),)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much", trailing_metadata=bad)

    router.script = abort
    with pytest.raises(Overloaded) as caught:
        await client.generate("Hi").completion()
    assert (caught.value.reason, caught.value.retry_after_s) == ("resource_exhausted", None)
