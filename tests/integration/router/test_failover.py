from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from octavo.errors import from_rpc_error
from octavo.v1 import engine_pb2, types_pb2
from support.fake_engine import PAGE_SIZE, count_up
from support.router_client import Answer, request

PROMPT = [30, 31, 32, 33] * 4


async def streaming_from(router, engines, **options):
    """Start a request that stands still after 5 tokens; return its call, what it brought, its engine and the other."""
    for engine in engines:
        engine.hold_at = 5
    call = router.inference.Generate(request(PROMPT, **options), timeout=20)
    answer = Answer()
    wanted = 5 * options.get("n", 1)
    while sum(map(len, answer.token_ids.values())) < wanted:
        answer.add(await call.read())
    home = next(engine for engine in engines if engine.engine_id == answer.accepted.engine_id)
    other = next((engine for engine in engines if engine is not home), None)
    return call, answer, home, other


async def rest_of(call, answer):
    while (response := await call.read()) is not grpc.aio.EOF:
        answer.add(response)
    return answer


@pytest.fixture
async def two(new_engine):
    return [await new_engine("e1"), await new_engine("e2")]


async def test_killed_engine_is_not_noticed_by_the_client(two, new_router):
    router = await new_router(*two)
    call, answer, home, other = await streaming_from(router, two, max_tokens=20, seed=11)
    other.release()
    await home.kill()
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(home.submits[0], 0))
    assert answer.finished[0].reason == types_pb2.FINISH_REASON_LENGTH
    assert answer.finished[0].num_moves == 1
    assert answer.finished[0].engine_id == other.engine_id
    assert answer.finished[0].usage == types_pb2.Usage(prompt_tokens=16, cached_tokens=0, output_tokens=20)


async def test_next_engine_gets_the_output_so_far_as_committed(two, new_router):
    router = await new_router(*two)
    call, answer, home, other = await streaming_from(router, two, max_tokens=20, seed=11, n=2)
    other.release()
    await home.kill()
    await rest_of(call, answer)
    resumed = other.submits[0]
    assert [list(choice.token_ids) for choice in resumed.committed] == [
        list(count_up()(home.submits[0], choice))[:5] for choice in range(2)
    ]
    assert resumed.attempt == 1
    assert resumed.expected_cached_tokens == 0, "committed tokens are no cached ones, and this engine has no page"
    assert resumed.prompt_token_ids == home.submits[0].prompt_token_ids
    assert resumed.sampling == home.submits[0].sampling
    assert {choice: len(token_ids) for choice, token_ids in answer.token_ids.items()} == {0: 20, 1: 20}


async def test_hanging_engine_loses_its_requests(two, new_router):
    router = await new_router(*two)
    call, answer, home, other = await streaming_from(router, two, max_tokens=20)
    home.silent = True
    other.release()
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(home.submits[0], 0))
    assert answer.finished[0].engine_id == other.engine_id


async def test_silent_engine_gets_nothing_new_before_it_is_given_up(two, new_router):
    router = await new_router(*two)
    home = two[0]
    home.silent = True
    await router.serving("e2")
    answers = [await router.generate([40 + index] * 9) for index in range(4)]
    assert {answer.accepted.engine_id for answer in answers} == {"e2"}


async def test_late_tokens_of_a_lost_engine_are_dropped(two, new_router):
    router = await new_router(*two)
    call, answer, home, other = await streaming_from(router, two, max_tokens=20)
    home.silent = True
    other.hold_at = 10
    while len(answer.token_ids[0]) < 10:
        answer.add(await call.read())
    home.silent = False  # it wakes and goes on as if nothing had happened
    home.release()
    await router.serving("e1", "e2")
    other.release()
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(home.submits[0], 0))


async def test_draining_engine_hands_its_requests_over(two, new_router):
    router = await new_router(*two)
    call, answer, home, other = await streaming_from(router, two, max_tokens=20)
    other.hold_at = None
    home.end_held(types_pb2.FINISH_REASON_HANDOFF)
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(home.submits[0], 0))
    assert answer.finished[0].num_moves == 1


async def test_request_without_another_engine_waits_for_one(new_engine, new_router):
    first = await new_engine("e1")
    spare = await new_engine("e2")
    await spare.kill()
    router = await new_router(first, move_wait_s=10, engines=f"{first.address},{spare.address}")
    call, answer, home, _ = await streaming_from(router, [first], max_tokens=20)
    await home.kill()
    await router.serving()
    await spare.start(spare.address)
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(home.submits[0], 0))
    assert answer.finished[0].engine_id == "e2"


async def test_request_ends_with_a_status_when_no_engine_comes(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine, move_wait_s=0.2)
    call, answer, home, _ = await streaming_from(router, [engine], max_tokens=20)
    await home.kill()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest_of(call, answer)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_request_that_kills_its_second_engine_too_is_not_tried_at_a_third(new_engine, new_router):
    engines = [await new_engine(f"e{index}") for index in range(4)]
    router = await new_router(*engines)
    for engine in engines:
        engine.hold_at = 3
        engine.end_with = types_pb2.FINISH_REASON_ERROR
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.generate(max_tokens=20)
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "request_quarantined")
    assert error.retry_after_s is None, "nobody is invited to kill more engines with it"
    assert sum(len(engine.submits) for engine in engines) == 2


@pytest.mark.parametrize(("says_so", "times"), [(False, 1), (True, 2)], ids=["unannounced", "announced"])
async def test_engines_that_stop_in_order_accuse_no_request(new_engine, new_router, says_so, times):
    engines = [await new_engine("e1"), await new_engine("e2")]
    router = await new_router(*engines, max_moves=2)
    for engine in engines:
        engine.leaves, engine.says_that_it_leaves = times, says_so
    answer = await router.generate(max_tokens=20)
    assert answer.token_ids[0] == list(count_up()(engines[0].submits[0], 0))
    assert [engine.leaves for engine in engines] == [0, 0]


async def test_request_that_breaks_the_links_of_two_engines_is_not_tried_at_a_third(new_engine, new_router):
    engines = [await new_engine(f"e{index}") for index in range(3)]
    router = await new_router(*engines)
    for engine in engines:
        engine.breaks_its_link = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.generate(max_tokens=20)
    assert from_rpc_error(caught.value).reason == "request_quarantined"
    assert sum(len(engine.submits) for engine in engines) == 2


async def test_request_that_goes_on_between_its_losses_is_given_up_after_two_moves(new_engine, new_router):
    engines = [await new_engine(f"e{index}") for index in range(4)]
    router = await new_router(*engines)
    for engine in engines:
        engine.end_with = types_pb2.FINISH_REASON_ERROR

        def three_more(link, submit, position, engine=engine, may_go_on=engine._may_go_on):
            engine.hold_at = 3 * (submit.attempt + 1)
            return may_go_on(link, submit, position)

        engine._may_go_on = three_more
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.generate(max_tokens=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert sum(len(engine.submits) for engine in engines) == 3, "the first try and two moves"


async def test_engine_whose_core_hangs_loses_its_requests_at_once_and_gets_no_new_ones(two, new_router):
    router = await new_router(*two)
    call, answer, home, other = await streaming_from(router, two, max_tokens=20)
    other.release()
    home.load.stalled = True
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(home.submits[0], 0))
    assert answer.finished[0].engine_id == other.engine_id
    await home.until(lambda: home.cancels == [home.submits[0].stream_id])
    answers = [await router.generate([60 + index] * 9) for index in range(4)]
    assert {answer.accepted.engine_id for answer in answers} == {other.engine_id}


async def test_core_that_wakes_up_serves_again_and_its_late_tokens_are_dropped(two, new_router):
    router = await new_router(*two)
    call, answer, home, other = await streaming_from(router, two, max_tokens=20)
    other.hold_at = 10
    home.load.stalled = True
    while len(answer.token_ids[0]) < 10:
        answer.add(await call.read())
    home.load.stalled = False
    home.release()
    await router.serving("e1", "e2")
    other.release()
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(home.submits[0], 0))


async def test_engine_that_hangs_at_the_welcome_gets_nothing(new_engine, new_router):
    stalled, serving = await new_engine("e1"), await new_engine("e2")
    stalled.load.stalled = True
    router = await new_router(serving, engines=f"{stalled.address},{serving.address}")
    await router.until(lambda: len(router.router.fleet.engines) == 2)
    answers = [await router.generate([50 + index] * 9) for index in range(4)]
    assert {answer.accepted.engine_id for answer in answers} == {"e2"}


async def test_broken_engine_is_left_at_once(two, new_router):
    router = await new_router(*two)
    call, answer, home, other = await streaming_from(router, two, max_tokens=20)
    other.release()
    killed_at = time.monotonic()
    await home.kill()
    await rest_of(call, answer)
    assert time.monotonic() - killed_at < 1.0, "not the 1.2 s of silence"


async def test_refused_request_tries_the_next_engine(two, new_router):
    router = await new_router(*two)
    home = (await router.generate(PROMPT)).accepted.engine_id
    full, free = two if home == "e1" else two[::-1]
    full.rejection = engine_pb2.Rejected(code=8, reason="queue_full", message="full", retry_after_ms=250)
    answer = await router.generate(PROMPT)
    assert answer.finished[0].engine_id == free.engine_id
    assert answer.finished[0].num_moves == 0


async def test_request_that_ended_with_its_last_token_needs_no_other_engine(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine, move_wait_s=0.0)
    engine.end_with = types_pb2.FINISH_REASON_ERROR
    engine.hold_at = 8
    original = engine._one_step

    def without_ends(*args):
        message = original(*args)
        if message.step.ends:
            args[3][0] = False  # goes on, to die before it says that the choice ended
            del message.step.ends[:]
        return message

    engine._one_step = without_ends
    answer = await asyncio.wait_for(router.generate(max_tokens=8), 5)
    assert len(answer.token_ids[0]) == 8
    assert answer.finished[0].reason == types_pb2.FINISH_REASON_LENGTH


async def test_newer_process_of_an_engine_replaces_one_that_hangs(new_engine, new_router):
    old, new = await new_engine("e1"), await new_engine("e1")
    spare_address = new.address
    await new.kill()
    router = await new_router(old, engines=f"{old.address},{spare_address}")
    call, answer, _, _ = await streaming_from(router, [old], max_tokens=20)
    new.epoch = old.epoch + 1
    await new.start(spare_address)
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(old.submits[0], 0))
    assert [engine.epoch for engine in router.router.fleet.engines] == [new.epoch]
    assert len(new.submits) == 1


async def test_engine_that_was_draining_at_the_welcome_gets_nothing(new_engine, new_router):
    draining, serving = await new_engine("e1"), await new_engine("e2")
    draining.load.draining = True
    router = await new_router(serving, engines=f"{draining.address},{serving.address}")
    await router.until(lambda: len(router.router.fleet.engines) == 2)
    answers = [await router.generate([50 + index] * 9) for index in range(4)]
    assert {answer.accepted.engine_id for answer in answers} == {"e2"}


OTHER_KINDS = [
    {"model_revision": "r2"},
    {"numerics": "fast"},
    {"dtype": "bfloat16"},
    {"backend": "triton"},
    {"device": "cuda"},
]


@pytest.mark.parametrize("other_kind", OTHER_KINDS)
async def test_stream_ends_with_a_typed_error_when_only_another_kind_of_engine_is_left(
    other_kind, new_engine, new_router
):
    engines = [await new_engine("e1"), await new_engine("e2", **other_kind)]
    router = await new_router(*engines, move_wait_s=0.1)
    call, answer, home, other = await streaming_from(router, engines, max_tokens=20)
    other.release()
    await home.kill()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest_of(call, answer)
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "no_engine_of_kind")
    assert error.retry_after_s > 0
    assert other.submits == []


async def test_stream_goes_on_at_the_engine_of_its_kind(new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2"), await new_engine("e3", numerics="fast")]
    engines[2].load.draining = True
    router = await new_router(*engines[:2], engines=",".join(engine.address for engine in engines))
    await router.until(lambda: len(router.router.fleet.engines) == 3)
    call, answer, home, _ = await streaming_from(router, engines[:2], max_tokens=20)
    other = engines[0] if home is engines[1] else engines[1]
    other.load.waiting_tokens = 1_000_000  # so that only its kind speaks for it
    engines[2].load.draining = False
    known = router.router.fleet.engine(other.engine_id).load
    await router.until(lambda: known.report.waiting_tokens)
    await router.serving("e1", "e2", "e3")
    other.release()
    await home.kill()
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(home.submits[0], 0))
    assert answer.finished[0].engine_id == other.engine_id
    assert engines[2].submits == []


async def test_request_without_output_starts_again_at_an_engine_of_another_kind(new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2", model_revision="r2", numerics="fast")]
    router = await new_router(*engines)
    for engine in engines:
        engine.hold_at = 0
    call = router.inference.Generate(request(PROMPT, max_tokens=20), timeout=20)
    answer = Answer()
    answer.add(await call.read())
    home, other = engines if answer.accepted.engine_id == "e1" else engines[::-1]
    await home.until(lambda: len(home.submits) == 1)
    other.release()
    await home.kill()
    await rest_of(call, answer)
    assert len(answer.token_ids[0]) == 20
    assert answer.finished[0].engine_id == other.engine_id


async def test_engine_that_sends_torn_columns_loses_its_requests(two, new_router):
    router = await new_router(*two)
    call, answer, home, other = await streaming_from(router, two, max_tokens=20)
    whole = home._one_step

    def torn(*args):
        message = whole(*args)
        del message.step.positions[-1:]
        return message

    home._one_step = torn
    home.release()
    other.release()
    await rest_of(call, answer)
    assert answer.token_ids[0] == list(count_up()(home.submits[0], 0))
    assert answer.finished[0].engine_id == other.engine_id


async def test_deadline_that_passes_while_a_refused_move_waits_ends_the_request(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine, max_timeout_s=0.5)
    call, answer, _, _ = await streaming_from(router, [engine], max_tokens=20)
    engine.rejection = engine_pb2.Rejected(code=8, reason="queue_full", message="full", retry_after_ms=60_000)
    engine.end_held(types_pb2.FINISH_REASON_ERROR)
    await rest_of(call, answer)
    assert answer.finished[0].reason == types_pb2.FINISH_REASON_DEADLINE
    assert len(engine.submits) == 2, "nothing is sent for a request that is over"


async def test_usage_never_counts_more_cached_tokens_than_the_prompt_has(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)

    async def cached(submit):
        return len(submit.prompt_token_ids) + PAGE_SIZE

    engine._cache = cached
    answer = await router.generate(PROMPT)
    assert answer.finished[0].usage.cached_tokens == len(PROMPT)
