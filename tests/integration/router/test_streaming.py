from __future__ import annotations

import asyncio

import pytest
from octavo.v1 import types_pb2
from octavo_router.tokenizer import Tokenizer
from support.fake_engine import count_up, say
from support.router_client import request


async def test_tokens_arrive_exactly_once_in_order(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    answer = await router.generate(max_tokens=40)
    assert answer.token_ids[0] == list(count_up()(engine.submits[0], 0))
    assert answer.finished[0].reason == types_pb2.FINISH_REASON_LENGTH
    assert answer.finished[0].usage.output_tokens == 40
    assert answer.finished[0].engine_id == "e1"
    assert answer.finished[0].timing.decode_ns == 3


async def test_accepted_comes_first_and_says_why(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    responses = [
        response.WhichOneof("event") async for response in router.inference.Generate(request(max_tokens=2), timeout=10)
    ]
    answer = await router.generate(metadata=(("x-request-id", "mine"),))
    assert responses[0] == "accepted"
    assert responses[-1] == "finished"
    assert answer.accepted.request_id == "mine"
    assert answer.accepted.engine_id == "e1"
    assert answer.accepted.reason.startswith("e1: ")
    assert "cost" in answer.accepted.reason
    assert engine.submits[-1].request_id == "mine"


async def test_eos_ends_the_choice_and_is_hidden_in_the_text(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    engine.script = say([300, 301, 2])
    answer = await router.generate()
    assert answer.token_ids[0] == [300, 301, 2]
    assert answer.finished[0].reason == types_pb2.FINISH_REASON_STOP
    assert answer.finished[0].stopped_by == "2"
    assert "<|im_end|>" not in answer.text[0]


async def test_choices_are_kept_apart(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    answer = await router.generate(max_tokens=12, n=3)
    for choice in range(3):
        assert answer.token_ids[choice] == list(count_up()(engine.submits[0], choice))
    assert sorted(finished.index for finished in answer.finished) == [0, 1, 2]
    assert answer.finished[-1].usage.output_tokens == 36


async def test_text_is_the_decoding_of_the_tokens(new_engine, new_router, model_directory):
    tokenizer = Tokenizer(model_directory)
    wanted = "naïve café 👋🏽 東京"
    engine = await new_engine("e1")
    router = await new_router(engine)
    engine.script = say([*tokenizer.encode_text(wanted), 2])
    responses = [response async for response in router.inference.Generate(request(max_tokens=100), timeout=10)]
    chunks = [response.chunk.text for response in responses if response.HasField("chunk")]
    assert "".join(chunks) == wanted
    assert all("\ufffd" not in chunk for chunk in chunks)


async def test_stop_string_ends_the_choice_without_leaking(new_engine, new_router, model_directory):
    tokenizer = Tokenizer(model_directory)
    engine = await new_engine("e1")
    router = await new_router(engine)
    engine.script = say(tokenizer.encode_text("the quick brown fox jumps over the lazy dog"))
    engine.hold_at = len(tokenizer.encode_text("the quick brown fox jumps"))  # it has more to say, but not yet
    answer = await router.generate(max_tokens=100, stop=["brown fox", "never"])
    assert answer.text[0] == "the quick "
    assert answer.finished[0].reason == types_pb2.FINISH_REASON_STOP
    assert answer.finished[0].stopped_by == "brown fox"
    assert answer.finished[0].usage.output_tokens == len(answer.token_ids[0])
    timing = answer.finished[0].timing
    assert timing.queue_ns == 5
    assert timing.prefill_ns > 0
    assert timing.decode_ns > 0
    await engine.until(lambda: len(engine.cancels) == 1)


async def test_stop_strings_are_not_sent_to_engines(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    await router.generate(stop=["secret"])
    assert not engine.submits[0].sampling.stop


async def test_chat_is_rendered_and_tokenized(new_engine, new_router, model_directory):
    engine = await new_engine("e1")
    router = await new_router(engine)
    answer = await router.generate([("user", "hello")])
    text = "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert list(engine.submits[0].prompt_token_ids) == Tokenizer(model_directory).encode_text(text)
    assert answer.accepted.prompt_tokens == len(engine.submits[0].prompt_token_ids)


async def test_logprobs_come_only_if_asked_for(new_engine, new_router):
    router = await new_router(await new_engine("e1"))
    logprobs = {True: [], False: []}
    for asked in logprobs:
        async for response in router.inference.Generate(request(max_tokens=3, logprobs=asked), timeout=10):
            logprobs[asked] += response.chunk.logprobs
    assert logprobs[True] == pytest.approx([-0.5] * 3)
    assert logprobs[False] == []


async def test_seed_is_drawn_when_absent_and_kept_when_given(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    await router.generate(seed=None)
    await router.generate(seed=0)
    assert engine.submits[0].sampling.HasField("seed")
    assert engine.submits[1].sampling.HasField("seed")
    assert engine.submits[1].sampling.seed == 0


async def test_output_is_cut_to_the_room_that_the_context_leaves(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    engine.script = say([20, 2])
    await router.generate([5] * 4000, max_tokens=0)
    await router.generate([5] * 4000, max_tokens=1000)
    assert [submit.sampling.max_tokens for submit in engine.submits] == [96, 96]


async def test_slow_client_holds_the_engine_back_and_loses_nothing(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine, max_ahead_tokens=16)
    answer = await router.generate(max_tokens=100)
    assert answer.token_ids[0] == list(count_up()(engine.submits[0], 0))
    assert engine.num_credits >= 100 // 16


async def test_first_token_is_not_held_back(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    engine.hold_at = 1
    call = router.inference.Generate(request(max_tokens=3), timeout=10)
    assert (await call.read()).HasField("accepted")
    first = await asyncio.wait_for(call.read(), 5)
    assert first.chunk.position == 0
    assert first.chunk.num_tokens == 1
    engine.release()
    assert (await call.read()).chunk.position == 1
