from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from octavo.v1 import engine_pb2, engine_pb2_grpc, types_pb2
from support.engine_process import Gate
from support.fake_core import POISON, expected_tokens
from support.link_client import LinkClient, a_submit, open_link

if TYPE_CHECKING:
    Stub = engine_pb2_grpc.EngineServiceAsyncStub

ENDLESS = 4000


async def all_arrived(link: LinkClient) -> None:
    """Wait until the engine has taken everything sent so far: it refuses a request that was sent after it."""
    await link.submit(a_submit(999, prompt=[5000]))
    await link.rejected()


async def test_a_link_streams_exactly_the_tokens_of_the_model(link: LinkClient) -> None:
    await link.submit(a_submit(prompt=[11, 12, 13], max_tokens=20))

    end = await link.ended()

    assert link.tokens[1, 0] == expected_tokens([11, 12, 13], 20)
    assert end.reason == types_pb2.FINISH_REASON_LENGTH
    assert (end.usage.prompt_tokens, end.usage.output_tokens) == (3, 20)
    assert end.timing.num_prefill_steps == 1
    assert end.timing.queue_ns > 0


async def test_many_requests_on_one_link_keep_apart(link: LinkClient) -> None:
    prompts = {stream_id: [20 + stream_id, 30] * stream_id for stream_id in range(1, 30)}
    for stream_id, prompt in prompts.items():
        await link.submit(a_submit(stream_id, prompt, max_tokens=10))

    for stream_id, prompt in prompts.items():
        await link.ended(stream_id)
        assert link.tokens[stream_id, 0] == expected_tokens(prompt, 10)


async def test_two_links_get_their_own_tokens_although_stream_ids_are_equal(stub: Stub, link: LinkClient) -> None:
    async with open_link(stub, "router-2") as other:
        await link.submit(a_submit(prompt=[21], max_tokens=50))
        await other.submit(a_submit(prompt=[22], max_tokens=50))
        await link.ended()
        await other.ended()

    assert link.tokens[1, 0] == expected_tokens([21], 50)
    assert other.tokens[1, 0] == expected_tokens([22], 50)


async def test_each_choice_follows_its_own_seed(link: LinkClient) -> None:
    submit = a_submit(prompt=[21, 22], max_tokens=6)
    submit.sampling.n = 3
    await link.submit(submit)

    ends = [await link.ended(1, choice) for choice in range(3)]

    for choice in range(3):
        assert link.tokens[1, choice] == expected_tokens([21, 22], 6, seed=choice)
    assert max(end.usage.output_tokens for end in ends) == 18


async def test_a_resumed_request_goes_on_after_its_committed_output(link: LinkClient) -> None:
    output = expected_tokens([21, 22], 10)
    link.bases[1, 0] = 4
    await link.submit(
        a_submit(
            prompt=[21, 22], max_tokens=10, committed=[engine_pb2.CommittedOutput(token_ids=output[:4])], attempt=1
        )
    )

    end = await link.ended()

    assert link.tokens[1, 0] == output[4:]
    assert end.usage.output_tokens == 10
    assert end.usage.prompt_tokens == 2


async def test_a_second_run_of_a_prompt_hits_the_prefix_cache(link: LinkClient) -> None:
    prompt = list(range(500, 550))
    await link.submit(a_submit(1, prompt))
    await link.ended(1)
    await link.submit(a_submit(2, prompt))

    end = await link.ended(2)

    assert end.usage.cached_tokens == 48
    assert link.tokens[2, 0] == link.tokens[1, 0]


async def test_cancel_frees_the_pages_within_one_step(gated_stub: Stub, steps: Gate) -> None:
    async with open_link(gated_stub) as link:
        await link.submit(a_submit(max_tokens=ENDLESS))
        steps.let_pass(3)
        await link.until(lambda: len(link.tokens[1, 0]) == 3)

        await link.cancel(1)
        await all_arrived(link)  # the core waits in the fourth step
        steps.let_pass()

        assert (await link.ended()).reason == types_pb2.FINISH_REASON_CANCELLED
        load = (await gated_stub.Describe(engine_pb2.DescribeRequest())).load
        assert (load.pages_in_use, load.num_running) == (0, 0)


async def test_a_broken_link_cancels_its_requests(stub: Stub, link: LinkClient) -> None:
    async with open_link(stub, "router-2") as broken:
        await broken.submit(a_submit(1, max_tokens=ENDLESS))
        await broken.submit(a_submit(2, max_tokens=ENDLESS))
        await broken.until(lambda: broken.tokens[1, 0] and broken.tokens[2, 0])

    beat = await link.next("heartbeat", lambda m: m.heartbeat.num_requests == 0)
    assert beat.heartbeat.load.pages_in_use == 0


async def test_a_request_pauses_at_its_credit_and_goes_on_with_more(gated_stub: Stub, steps: Gate) -> None:
    async with open_link(gated_stub) as link:
        await link.submit(a_submit(1, max_tokens=20))
        await link.credit(1, 5)
        await link.submit(a_submit(2, prompt=[31], max_tokens=15))
        await link.next("heartbeat", lambda m: m.heartbeat.num_requests == 2)
        steps.let_pass(100)
        await link.ended(2)
        at_pause = len(link.tokens[1, 0])
        await link.credit(1, 1000)
        await link.ended(1)

    assert at_pause == 5
    assert link.tokens[1, 0] == expected_tokens([11, 12, 13], 20)


async def test_steps_go_on_being_counted_while_every_request_is_paused(gated_stub: Stub, steps: Gate) -> None:
    async with open_link(gated_stub) as link:
        await link.submit(a_submit(max_tokens=20))
        await link.credit(1, 5)
        await all_arrived(link)
        steps.let_pass(100)
        await link.until(lambda: len(link.tokens[1, 0]) == 5)
        first = await link.next("heartbeat")

        await link.next("heartbeat", lambda m: m.heartbeat.step_id > first.heartbeat.step_id + 2)

        assert len(link.tokens[1, 0]) == 5
        await link.cancel(1)
        await link.ended()


async def test_heartbeats_come_while_a_step_hangs_and_say_that_it_does(gated_stub: Stub, steps: Gate) -> None:
    async with open_link(gated_stub) as link:
        await link.submit(a_submit())
        first = (await link.next("heartbeat", lambda m: m.heartbeat.num_requests == 1)).heartbeat
        second = (await link.next("heartbeat")).heartbeat
        third = (await link.next("heartbeat")).heartbeat
        steps.let_pass(100)
        await link.ended()

    assert first.step_id == third.step_id
    assert third.time_ns - second.time_ns < 1_000_000_000


async def test_load_counts_a_request_that_the_core_has_not_seen(gated_stub: Stub, steps: Gate) -> None:
    async with open_link(gated_stub) as link:
        await link.submit(a_submit(1, max_tokens=8))
        steps.let_pass()
        await link.until(lambda: link.tokens[1, 0])
        await link.submit(a_submit(2, prompt=list(range(10, 80))))

        beat = (await link.next("heartbeat", lambda m: m.heartbeat.num_requests == 2)).heartbeat
        steps.let_pass(100)
        await link.ended(1)
        await link.ended(2)

    assert beat.load.num_waiting == 1
    assert beat.load.waiting_tokens >= 70
    assert [each.stream_id for each in beat.load.taken] == [2], "and says so"


async def test_page_events_on_a_link_lead_from_one_snapshot_to_the_next(stub: Stub) -> None:
    async with open_link(stub, page_events=True) as link:
        before = await stub.PageSnapshot(engine_pb2.PageSnapshotRequest())
        await link.submit(a_submit(1, prompt=list(range(700, 764)), max_tokens=20))
        await link.ended()
        await link.until(lambda: any(m.pages.num_resident >= len(before.hashes) + 5 for m in link.messages))
        after = await stub.PageSnapshot(engine_pb2.PageSnapshotRequest())

    events = [
        m.pages for m in link.messages if m.WhichOneof("message") == "pages" and m.pages.sequence > before.sequence
    ]
    resident = set(before.hashes)
    for event in events:
        resident |= set(event.stored)
        resident -= set(event.evicted)
    assert [event.sequence for event in events] == list(range(before.sequence + 1, after.sequence + 1))
    assert resident == set(after.hashes)
    assert (events[-1].digest, events[-1].epoch) == (after.digest, after.epoch)


async def test_a_link_that_did_not_ask_gets_no_page_events(stub: Stub, link: LinkClient) -> None:
    async with open_link(stub, "router-2", page_events=True) as other:
        await link.submit(a_submit(1, prompt=list(range(300, 364))))
        await other.next("pages")
        await link.next("heartbeat")

    assert not [m for m in link.messages if m.WhichOneof("message") == "pages"]


async def test_a_refused_request_leaves_its_link_open(link: LinkClient) -> None:
    await link.submit(a_submit(1, prompt=[5000]))
    rejected = await link.rejected()
    await link.submit(a_submit(2))
    await link.ended(2)

    assert rejected.stream_id == 1
    assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert rejected.reason == "invalid_token_id"


async def test_a_stream_id_in_use_is_refused(link: LinkClient) -> None:
    await link.submit(a_submit(1, max_tokens=ENDLESS))
    await link.submit(a_submit(1))

    assert (await link.rejected()).reason == "stream_id_in_use"


async def test_a_poisoned_step_ends_its_request_with_an_error_and_the_next_one_runs(link: LinkClient) -> None:
    await link.submit(a_submit(1, prompt=[POISON]))
    end = await link.ended(1)
    await link.submit(a_submit(2))
    await link.ended(2)

    assert end.reason == types_pb2.FINISH_REASON_ERROR
    assert end.error == "engine_step_failed"
    assert link.tokens[2, 0] == expected_tokens([11, 12, 13], 4)


async def test_a_deadline_ends_a_request_that_runs(gated_stub: Stub, steps: Gate) -> None:
    async with open_link(gated_stub) as link:
        await link.submit(a_submit(max_tokens=20, timeout_ms=500))
        await link.credit(1, 5)
        await all_arrived(link)
        steps.let_pass(100)

        end = await link.ended()

    assert end.reason == types_pb2.FINISH_REASON_DEADLINE
    assert len(link.tokens[1, 0]) <= 5


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (engine_pb2.LinkRequest(cancel=engine_pb2.Cancel(stream_id=1)), "opens with hello"),
        (engine_pb2.LinkRequest(hello=engine_pb2.Hello(router_id="r", protocol_version=9)), "version 1"),
        (engine_pb2.LinkRequest(hello=engine_pb2.Hello(router_id="a b", protocol_version=1)), "router_id"),
    ],
)
async def test_a_link_with_a_wrong_hello_is_refused(stub: Stub, hello: engine_pb2.LinkRequest, reason: str) -> None:
    call = stub.Link()  # type: ignore[call-arg]
    await call.write(hello)

    with pytest.raises(grpc.aio.AioRpcError, match=reason) as refused:
        await call.read()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_second_hello_ends_the_link(stub: Stub) -> None:
    async with open_link(stub) as link:
        await link.call.write(engine_pb2.LinkRequest(hello=engine_pb2.Hello(router_id="r", protocol_version=1)))

        error = await link.broken()

    assert error is not None
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_cancelled_choice_ends_alone(gated_stub: Stub, steps: Gate) -> None:
    async with open_link(gated_stub) as link:
        submit = a_submit(max_tokens=8)
        submit.sampling.n = 2
        await link.submit(submit)
        steps.let_pass(4)
        await link.until(lambda: len(link.tokens[1, 1]) == 3)

        await link.cancel(1, 1)
        await all_arrived(link)
        steps.let_pass(100)

        assert (await link.ended(1, 1)).reason == types_pb2.FINISH_REASON_CANCELLED
        assert (await link.ended(1, 0)).reason == types_pb2.FINISH_REASON_LENGTH
        assert link.tokens[1, 0] == expected_tokens([11, 12, 13], 8)
        assert len(link.tokens[1, 1]) in {3, 4}, "a step that was in flight gives it one more"
