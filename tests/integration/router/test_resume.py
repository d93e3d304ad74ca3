from __future__ import annotations

import grpc
import pytest
from octavo.errors import from_rpc_error
from octavo.v1 import inference_pb2, types_pb2
from support.fake_engine import count_up, say
from support.router_client import Answer, request

PROMPT = [30, 31, 32, 33] * 4
EURO = "€".encode()


@pytest.fixture
async def engine(new_engine):
    return await new_engine("e1")


async def first_tokens(router, engine, num_tokens, **options):
    """Let a request give so many tokens per choice, then give it up, as if its router had died; return what came."""
    engine.hold_at = num_tokens
    call = router.inference.Generate(request(PROMPT, **options), timeout=20)
    answer = Answer()
    wanted = num_tokens * options.get("n", 1)
    while sum(map(len, answer.token_ids.values())) < wanted:
        answer.add(await call.read())
    call.cancel()
    engine.release()
    return answer


def resumed(answer, num_choices=1, **options):
    """Return the request that goes on behind an answer."""
    options["max_tokens"] = answer.accepted.max_tokens
    message = request(PROMPT, seed=answer.accepted.seed, n=num_choices, **options)
    ends = {end.index: end.reason for end in answer.finished}
    message.resume.engine_kind = answer.origin.engine_kind
    message.resume.cached_tokens = answer.origin.cached_tokens
    for index in range(num_choices):
        message.resume.choices.add(
            token_ids=answer.token_ids.get(index, []),
            text_bytes=len(answer.text.get(index, "").encode()),
            finish_reason=ends.get(index),
        )
    return message


async def go_on(router, answer, message):
    """Add what a router gives behind an answer to it."""
    async for response in router.inference.Generate(message, timeout=20):
        if response.HasField("accepted"):
            assert response.accepted.seed == answer.accepted.seed
        else:
            answer.add(response)
    return answer


def whole(answer):
    """Return all of an answer that a resume may not change."""
    ends = {
        end.index: (end.reason, end.stopped_by, end.usage.prompt_tokens, end.usage.output_tokens)
        for end in answer.finished
    }
    return answer.text, answer.token_ids, ends, answer.finished[-1].usage


@pytest.mark.parametrize("cut", [1, 5, 19])
async def test_generation_goes_on_at_another_router(cut, engine, new_router):
    old, new, calm = [await new_router(engine) for _ in range(3)]
    answer = await first_tokens(old, engine, cut, max_tokens=20, n=2, seed=None)
    await go_on(new, answer, resumed(answer, num_choices=2))
    undisturbed = await calm.generate(PROMPT, max_tokens=20, n=2, seed=answer.accepted.seed)
    assert (answer.text, answer.token_ids) == (undisturbed.text, undisturbed.token_ids)
    assert answer.finished[-1].usage.output_tokens == 40
    assert [len(choice.token_ids) for choice in engine.submits[1].committed] == [cut, cut]
    assert engine.submits[1].attempt == 1


async def test_stop_string_across_the_cut_ends_the_text(engine, new_router):
    old, new = await new_router(engine), await new_router(engine)
    vocabulary = old.router._tokenizer.tokenizer
    engine.script = say(await vocabulary_ids(vocabulary, "one STOP two"))
    answer = await first_tokens(old, engine, 5, max_tokens=30, stop=["STOP"])
    await go_on(new, answer, resumed(answer, stop=["STOP"]))
    assert answer.text[0] == "one "
    assert (answer.finished[0].reason, answer.finished[0].stopped_by) == (types_pb2.FINISH_REASON_STOP, "STOP")


async def vocabulary_ids(tokenizer, text):
    """Return one token per byte."""
    ids = []
    for byte in text.encode():
        (token_id,) = tokenizer.encode_text(chr(byte))
        ids.append(token_id)
    return ids


async def test_end_that_was_lost_needs_no_engine(engine, new_router):
    old, new = await new_router(engine), await new_router(engine)
    answer = await old.generate(PROMPT, max_tokens=8)
    undisturbed = whole(answer)
    answer.finished.clear()
    await go_on(new, answer, resumed(answer))
    assert whole(answer) == undisturbed
    assert len(engine.submits) == 1


async def test_finished_choice_is_not_sent_again(engine, new_router):
    old, new = await new_router(engine), await new_router(engine)
    engine.script = lambda submit, choice: count_up()(submit, choice)[: 4 if choice == 0 else 20]
    answer = await first_tokens(old, engine, 4, max_tokens=20, n=2)
    answer.finished = [inference_pb2.Finished(index=0, reason=types_pb2.FINISH_REASON_LENGTH)]
    await go_on(new, answer, resumed(answer, num_choices=2))
    assert [end.index for end in answer.finished] == [0, 1]
    assert [len(ids) for ids in answer.token_ids.values()] == [4, 20]
    assert answer.finished[1].usage.output_tokens == 24
    assert engine.submits[1].committed[0].finished


async def test_usage_counts_the_cached_tokens_of_the_first_run(engine, new_router):
    old, new = await new_router(engine), await new_router(engine)
    answer = await first_tokens(old, engine, 5, max_tokens=20)
    assert answer.origin.cached_tokens == 0
    await go_on(new, answer, resumed(answer))
    assert answer.finished[0].usage == types_pb2.Usage(prompt_tokens=16, cached_tokens=0, output_tokens=20)


async def test_long_output_is_not_held_by_the_credit_of_a_fresh_request(engine, new_router):
    old, new = await new_router(engine, max_ahead_tokens=16), await new_router(engine, max_ahead_tokens=16)
    answer = await first_tokens(old, engine, 60, max_tokens=100)
    await go_on(new, answer, resumed(answer))
    assert len(answer.token_ids[0]) == 100


async def test_only_an_engine_of_the_kind_that_began_may_go_on(engine, new_engine, new_router):
    old = await new_router(engine)
    other = await new_engine("e2", numerics="fast")
    new = await new_router(other, move_wait_s=0.1)
    answer = await first_tokens(old, engine, 5, max_tokens=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await go_on(new, answer, resumed(answer))
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "no_engine_of_kind")
    assert other.submits == []


async def test_resume_waits_for_an_engine_of_its_kind(engine, new_engine, new_router):
    old = await new_router(engine)
    other = await new_engine("e2", numerics="fast")
    spare = await new_engine("e3")
    await spare.kill()
    new = await new_router(other, engines=f"{other.address},{spare.address}", move_wait_s=20)
    answer = await first_tokens(old, engine, 5, max_tokens=20)
    call = new.inference.Generate(resumed(answer), timeout=20)
    await spare.start(spare.address)
    async for response in call:
        if not response.HasField("accepted"):
            answer.add(response)
    assert answer.token_ids[0] == list(count_up()(engine.submits[0], 0))
    assert answer.finished[0].engine_id == "e3"


async def test_engine_lost_after_a_resume_moves_the_generation_once_more(new_engine, new_router):
    two = [await new_engine("e1"), await new_engine("e2")]
    old, new = await new_router(two[0]), await new_router(*two)
    answer = await first_tokens(old, two[0], 5, max_tokens=20)
    for each in two:
        each.hold_at = 10
    call = new.inference.Generate(resumed(answer), timeout=20)
    placed = (await call.read()).accepted
    while len(answer.token_ids[0]) < 10:
        answer.add(await call.read())
    home, other = two if placed.engine_id == "e1" else two[::-1]
    other.release()
    await home.kill()
    while (response := await call.read()) is not grpc.aio.EOF:
        answer.add(response)
    assert answer.token_ids[0] == list(count_up()(two[0].submits[0], 0))
    assert answer.finished[0].num_moves == 1


async def test_context_too_short_here_is_a_matter_for_another_router(engine, new_engine, new_router):
    old = await new_router(engine)
    small = await new_engine("e2", max_model_len=20)
    new = await new_router(small, move_wait_s=0.1)
    answer = await first_tokens(old, engine, 10, max_tokens=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await go_on(new, answer, resumed(answer))
    assert from_rpc_error(caught.value).reason == "no_room"


async def test_unlimited_request_keeps_its_limit(new_engine, new_router):
    short, long = await new_engine("e1", max_model_len=64), await new_engine("e2", max_model_len=128)
    old, new = await new_router(short), await new_router(long)
    answer = await first_tokens(old, short, 5, max_tokens=0)
    assert answer.accepted.max_tokens == 64 - len(PROMPT)
    await go_on(new, answer, resumed(answer))
    assert len(answer.token_ids[0]) == 64 - len(PROMPT)
