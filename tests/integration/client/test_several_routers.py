from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from octavo.errors import DeadlineExceeded, InternalError, InvalidRequest, Overloaded, Unavailable
from octavo.v1 import inference_pb2, types_pb2
from octavo_client import Accepted, Chunk, FinishReason, OctavoClient, Sampling
from octavo_client.routers import read_targets
from support.scripted_router import Context, ScriptedRouter, accepted, chunk, finished, scripted_router

Responses = AsyncIterator[inference_pb2.GenerateResponse]
ORIGIN = inference_pb2.Origin(engine_kind="kind-1", cached_tokens=4)


@pytest.fixture
async def two() -> AsyncIterator[list[ScriptedRouter]]:
    async with scripted_router() as first, scripted_router() as second:
        yield [first, second]


@pytest.fixture
async def client(two: list[ScriptedRouter]) -> AsyncIterator[OctavoClient]:
    async with OctavoClient([router.address for router in two]) as opened:
        yield opened


def token(text: str, position: int, index: int = 0) -> inference_pb2.GenerateResponse:
    response = chunk(text, position, index, token_ids=[10 + position], logprobs=[-0.5])
    response.chunk.origin.CopyFrom(ORIGIN)
    return response


async def die(context: Context) -> None:
    """End the stream without details, as the transport does when a process is gone."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


async def hello_in_two_parts(request: inference_pb2.GenerateRequest, context: Context) -> Responses:
    """Say "Hel", and die; say "lo" to whom goes on."""
    yield accepted(seed=77, max_tokens=9)
    if request.HasField("resume"):
        yield token("lo", 2)
        yield finished()
        return
    yield token("H", 0)
    yield token("el", 1)
    await die(context)


def set_all(routers: list[ScriptedRouter], script: object) -> None:
    for router in routers:
        router.script = script  # type: ignore[assignment]


def asked(two: list[ScriptedRouter]) -> list[inference_pb2.GenerateRequest]:
    """Return all requests: the fresh ones, then the resumed ones."""
    return sorted((request for router in two for request in router.requests), key=lambda each: each.HasField("resume"))


async def test_generation_goes_on_at_the_other_router(two: list[ScriptedRouter], client: OctavoClient) -> None:
    set_all(two, hello_in_two_parts)
    generation = client.generate("Hi", sampling=Sampling(stop=("!",)), logprobs=True)
    completion = await generation.completion()
    assert completion.text == "Hello"
    assert completion.choices[0].token_ids == ()
    assert completion.choices[0].logprobs == (-0.5, -0.5, -0.5)
    assert generation.num_resumes == 1
    assert [len(router.requests) for router in two] == [1, 1]


async def test_other_router_is_told_all_that_the_client_has(two: list[ScriptedRouter], client: OctavoClient) -> None:
    set_all(two, hello_in_two_parts)
    await client.generate("Hi", request_id="mine", sampling=Sampling(stop=("!",)), return_token_ids=True).completion()
    first, second = asked(two)
    assert list(second.resume.choices) == [inference_pb2.ResumedChoice(token_ids=[10, 11], text_bytes=3)]
    assert (second.resume.engine_kind, second.resume.cached_tokens) == ("kind-1", 4)
    assert (second.sampling.seed, second.sampling.max_tokens) == (77, 9)
    assert second.input == first.input
    assert list(second.sampling.stop) == ["!"]
    assert {metadata["x-request-id"] for router in two for metadata in router.metadata} == {"mine"}


async def test_events_come_as_if_nothing_had_happened(two: list[ScriptedRouter], client: OctavoClient) -> None:
    set_all(two, hello_in_two_parts)
    events = [event async for event in client.generate("Hi", return_token_ids=True)]
    assert isinstance(events[0], Accepted)
    chunks = [event for event in events[1:-1] if isinstance(event, Chunk)]
    assert [(each.position, each.text, each.token_ids) for each in chunks] == [
        (0, "H", (10,)),
        (1, "el", (11,)),
        (2, "lo", (12,)),
    ]
    assert len(events) == 5


async def test_finished_choice_is_not_asked_for_again(two: list[ScriptedRouter], client: OctavoClient) -> None:
    async def one_of_two(request: inference_pb2.GenerateRequest, context: Context) -> Responses:
        yield accepted()
        if not request.HasField("resume"):
            yield token("a", 0)
            yield token("x", 0, index=1)
            yield finished(1, types_pb2.FINISH_REASON_LENGTH)
            await die(context)
        yield token("b", 1)
        yield finished(0)

    set_all(two, one_of_two)
    completion = await client.generate("Hi", sampling=Sampling(n=2)).completion()
    assert [choice.text for choice in completion.choices] == ["ab", "x"]
    assert completion.choices[1].finish_reason is FinishReason.LENGTH
    reasons = [choice.finish_reason for choice in asked(two)[1].resume.choices]
    assert reasons == [types_pb2.FINISH_REASON_UNSPECIFIED, types_pb2.FINISH_REASON_LENGTH]


async def test_router_that_dies_after_the_last_event_is_not_missed(
    two: list[ScriptedRouter], client: OctavoClient
) -> None:
    async def all_but_the_end(_request: inference_pb2.GenerateRequest, context: Context) -> Responses:
        yield accepted()
        yield token("a", 0)
        yield finished()
        await die(context)

    set_all(two, all_but_the_end)
    assert (await client.generate("Hi").completion()).text == "a"
    assert len(asked(two)) == 1


async def test_router_that_dies_before_any_output_is_asked_again_with_its_seed(
    two: list[ScriptedRouter], client: OctavoClient
) -> None:
    async def die_once(_request: inference_pb2.GenerateRequest, context: Context) -> Responses:
        yield accepted(seed=77)
        if len(asked(two)) == 1:
            await die(context)
        yield token("a", 0)
        yield finished()

    set_all(two, die_once)
    assert (await client.generate("Hi").completion()).text == "a"
    assert sorted(request.sampling.seed for request in asked(two)) == [0, 77]
    assert not any(request.HasField("resume") for request in asked(two))


async def test_draining_router_is_left_for_another(two: list[ScriptedRouter], client: OctavoClient) -> None:
    async def drain_once(_request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
        if len(asked(two)) == 1:
            raise Unavailable("draining", "use another one", retry_after_s=0.5)
        yield accepted()
        yield finished()

    set_all(two, drain_once)
    await client.generate("Hi").completion()
    assert len(asked(two)) == 2


@pytest.mark.parametrize(
    "error", [InvalidRequest("invalid_resume", "no"), InternalError("internal", "bug")], ids=lambda each: each.reason
)
async def test_refusal_of_a_resume_is_final(
    two: list[ScriptedRouter], client: OctavoClient, error: InvalidRequest | InternalError
) -> None:
    async def refuse(request: inference_pb2.GenerateRequest, context: Context) -> Responses:
        if request.HasField("resume"):
            raise error
        yield accepted()
        yield token("a", 0)
        await die(context)

    set_all(two, refuse)
    with pytest.raises(type(error)) as caught:
        await client.generate("Hi").completion()
    assert caught.value.reason == error.reason
    assert len(asked(two)) == 2


async def test_full_router_is_asked_again_for_a_resume(two: list[ScriptedRouter], client: OctavoClient) -> None:
    async def full_twice(request: inference_pb2.GenerateRequest, context: Context) -> Responses:
        if request.HasField("resume") and len(asked(two)) < 4:
            raise Overloaded("too_many_requests", "try again", retry_after_s=0.1)
        async for response in hello_in_two_parts(request, context):
            yield response

    set_all(two, full_twice)
    assert (await client.generate("Hi").completion()).text == "Hello"
    assert len(asked(two)) == 4


async def test_deadline_holds_across_routers(two: list[ScriptedRouter], client: OctavoClient) -> None:
    async def full(request: inference_pb2.GenerateRequest, context: Context) -> Responses:
        if request.HasField("resume"):
            raise Overloaded("too_many_requests", "try again")
        yield accepted()
        yield token("a", 0)
        await die(context)

    set_all(two, full)
    with pytest.raises(DeadlineExceeded):
        await client.generate("Hi", timeout_s=0.5).completion()


async def test_router_that_repeats_a_position_is_not_believed(two: list[ScriptedRouter], client: OctavoClient) -> None:
    async def twice(_request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
        yield accepted()
        yield token("a", 0)
        yield token("a", 0)

    set_all(two, twice)
    with pytest.raises(InternalError) as caught:
        await client.generate("Hi").completion()
    assert caught.value.reason == "stream_out_of_order"


async def test_router_that_tells_no_origin_cannot_be_replaced(two: list[ScriptedRouter], client: OctavoClient) -> None:
    async def older(_request: inference_pb2.GenerateRequest, context: Context) -> Responses:
        yield accepted()
        yield chunk("a", 0)
        await die(context)

    set_all(two, older)
    with pytest.raises(Unavailable):
        await client.generate("Hi").completion()
    assert len(asked(two)) == 1


async def test_without_resumes_no_token_ids_are_asked_for(two: list[ScriptedRouter]) -> None:
    async with OctavoClient(two[0].address, max_resumes=0) as client:
        await client.generate("Hi").completion()
    assert not two[0].requests[0].return_token_ids


async def test_requests_take_the_routers_in_turn(two: list[ScriptedRouter], client: OctavoClient) -> None:
    for _ in range(4):
        await client.generate("Hi").completion()
    assert [len(router.requests) for router in two] == [2, 2]


async def test_unary_call_goes_to_a_router_that_lives(two: list[ScriptedRouter]) -> None:
    async with OctavoClient(f"127.0.0.1:1,{two[0].address}") as client:
        assert [await client.tokenize("Hi") for _ in range(3)] == [(5, 6, 7)] * 3


async def test_giving_up_ends_the_search_for_a_router(two: list[ScriptedRouter], client: OctavoClient) -> None:
    searching = asyncio.Event()

    async def full(request: inference_pb2.GenerateRequest, context: Context) -> Responses:
        if request.HasField("resume"):
            if len(asked(two)) > 3:
                searching.set()
            raise Overloaded("too_many_requests", "try again")
        yield accepted()
        yield token("a", 0)
        await die(context)

    set_all(two, full)
    reader = asyncio.create_task(client.generate("Hi").completion())
    await asyncio.wait_for(searching.wait(), 5)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    num_asked = len(asked(two))
    await client.tokenize("Hi")
    assert len(asked(two)) == num_asked


def test_targets_are_read_from_a_string_or_a_sequence() -> None:
    assert read_targets("a:1, b:2,") == read_targets(["a:1", "b:2"]) == ("a:1", "b:2")
    with pytest.raises(ValueError, match="router"):
        read_targets(" ,")
