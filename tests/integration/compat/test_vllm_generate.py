from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from octavo.errors import from_rpc_error
from octavo.v1 import admin_pb2, engine_pb2, engine_pb2_grpc, types_pb2
from octavo_engine.compat.translation import submit_of
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2
from support.engine_process import Gate, running_engine
from support.fake_core import POISON, expected_tokens
from support.link_client import a_submit
from support.vllm_client import a_request, answer_to, begun, rest_of, vllm_stub

ENDLESS = 4000


async def own_tokens(stub: engine_pb2_grpc.EngineServiceAsyncStub, submit: engine_pb2.Submit) -> dict[int, list[int]]:
    """Return the tokens that Octavo's own Generate gives, by choice."""
    tokens: dict[int, list[int]] = {}
    async for response in stub.Generate(engine_pb2.EngineServiceGenerateRequest(submit=submit)):
        if response.HasField("tokens"):
            tokens.setdefault(response.tokens.choice, []).extend(response.tokens.token_ids)
    return tokens


@pytest.mark.parametrize("stream", [True, False])
async def test_tokens_are_those_of_the_engines_own_service(
    vllm: Any, stub: engine_pb2_grpc.EngineServiceAsyncStub, stream: bool
) -> None:
    submit = a_submit(prompt=[21, 22], max_tokens=30)
    submit.sampling.MergeFrom(types_pb2.SamplingParams(n=3, temperature=0.7, seed=5))

    answer = await answer_to(vllm, a_request([21, 22], stream=stream, max_tokens=30, n=3, temperature=0.7, seed=5))

    assert dict(answer.token_ids) == await own_tokens(stub, submit)
    assert answer.token_ids[0] != answer.token_ids[1]


async def test_a_stream_ends_with_reason_and_counts(vllm: Any) -> None:
    answer = await answer_to(vllm, a_request([31, 32, 33], max_tokens=5))

    end = answer.ends[0]
    assert (end.finish_reason, end.prompt_tokens, end.completion_tokens) == ("length", 3, 5)
    assert not end.output_ids, "every token came in a chunk already"
    assert all(chunk.prompt_tokens == 3 for chunk in answer.chunks)


async def test_a_call_that_does_not_stream_gets_one_message(vllm: Any) -> None:
    answer = await answer_to(vllm, a_request([31, 32], stream=False, max_tokens=5))

    assert not answer.chunks
    assert list(answer.ends[0].output_ids) == expected_tokens([31, 32], 5)


async def test_a_second_run_of_a_prompt_reports_its_prefix_hit(vllm: Any) -> None:
    prompt = list(range(500, 550))
    first = await answer_to(vllm, a_request(prompt))
    second = await answer_to(vllm, a_request(prompt))

    assert first.ends[0].cached_tokens == 0
    assert {chunk.cached_tokens for chunk in second.chunks} == {second.ends[0].cached_tokens} == {48}


async def test_logprobs_come_with_the_tokens_chosen_if_asked_for(vllm: Any) -> None:
    with_them = await answer_to(vllm, a_request(logprobs=1))
    without = await answer_to(vllm, a_request())

    assert with_them.logprobs[0] == [-0.5] * 4
    assert not without.logprobs[0]


async def test_a_stop_token_ends_a_choice_and_is_named(vllm: Any) -> None:
    tokens = expected_tokens([11, 12, 13], 3)

    answer = await answer_to(vllm, a_request(stop_token_ids=[tokens[2]], max_tokens=50))

    assert answer.token_ids[0] == tokens
    assert (answer.ends[0].finish_reason, answer.ends[0].matched_token_id) == ("stop", tokens[2])


async def test_absent_limits_mean_what_the_context_allows() -> None:
    async with running_engine("--vllm-service", "--max-model-len", "64") as engine:
        request = a_request([11, 12])
        request.sampling_params.ClearField("max_tokens")

        answer = await answer_to(vllm_stub(engine.channel()), request)

    assert len(answer.token_ids[0]) == 62


def test_penalties_are_passed_on_and_absent_ones_are_off() -> None:
    given = submit_of(a_request(frequency_penalty=0.5, presence_penalty=-1, repetition_penalty=1.25), {}).sampling
    assert (given.frequency_penalty, given.presence_penalty, given.repetition_penalty) == (0.5, -1, 1.25)
    absent = submit_of(a_request(), {}).sampling
    assert (absent.frequency_penalty, absent.presence_penalty, absent.repetition_penalty) == (0, 0, 1)


async def test_an_id_and_a_seed_are_drawn_for_a_request_without(vllm: Any) -> None:
    request = a_request(request_id="")
    request.sampling_params.ClearField("seed")

    assert len((await answer_to(vllm, request)).token_ids[0]) == 4


async def pages_in_use(channel: grpc.aio.Channel) -> int:
    stub = engine_pb2_grpc.EngineServiceStub(channel)
    return (await stub.Describe(engine_pb2.DescribeRequest())).load.pages_in_use  # type: ignore[misc]


async def test_abort_ends_the_stream_and_frees_its_pages(gated: grpc.aio.Channel, steps: Gate) -> None:
    vllm = vllm_stub(gated)
    call, answer = await begun(vllm, steps, a_request(max_tokens=ENDLESS, request_id="mine"))
    assert await pages_in_use(gated) > 0

    await vllm.Abort(abort_request("another", "mine"))
    steps.let_pass(2)
    await rest_of(call, answer)

    assert answer.ends[0].finish_reason == "abort"
    assert answer.token_ids[0] == expected_tokens([11, 12, 13], len(answer.token_ids[0]))
    assert len(answer.token_ids[0]) <= 5
    assert await pages_in_use(gated) == 0


async def test_a_gateway_that_hangs_up_frees_the_pages(gated: grpc.aio.Channel, steps: Gate) -> None:
    vllm = vllm_stub(gated)
    call, _answer = await begun(vllm, steps, a_request(max_tokens=ENDLESS))

    call.cancel()

    async for batch in vllm.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(), timeout=30):
        if batch.load.running_requests == 0:
            break
        # One with each report: however many pass at once may all be over before the hang-up arrives.
        steps.let_pass()
    assert await pages_in_use(gated) == 0


async def test_abort_of_an_unknown_request_is_no_error(vllm: Any) -> None:
    await vllm.Abort(abort_request("nobody"))


def abort_request(*request_ids: str) -> Any:
    return vllm_engine_pb2.AbortRequest(request_ids=request_ids)


@pytest.mark.parametrize(
    ("sampling", "reason", "field"),
    [
        ({"temperature": -1}, "invalid_sampling", "sampling.temperature"),
        ({"n": 9}, "invalid_sampling", "sampling.n"),
        ({"n": 4_000_000_000}, "invalid_sampling", "sampling.n"),
        ({"max_tokens": 0}, "unsupported_parameter", "sampling_params.max_tokens"),
        ({"frequency_penalty": 2.5}, "invalid_sampling", "sampling.frequency_penalty"),
        ({"repetition_penalty": -1}, "invalid_sampling", "sampling.repetition_penalty"),
        ({"logit_bias": {7: 1.0}}, "unsupported_parameter", "sampling_params.logit_bias"),
        ({"logprobs": 5}, "unsupported_parameter", "sampling_params.logprobs"),
        ({"prompt_logprobs": 1}, "unsupported_parameter", "sampling_params.prompt_logprobs"),
        ({"json_schema": "{}"}, "unsupported_parameter", "sampling_params.json_schema"),
    ],
)
async def test_what_the_engine_cannot_do_is_refused_by_name(
    vllm: Any, sampling: dict[str, object], reason: str, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answer_to(vllm, a_request(**sampling))

    error = from_rpc_error(refused.value)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.field) == (reason, field)


@pytest.mark.parametrize(
    ("prompt", "reason"), [([], "empty_prompt"), ([5000], "invalid_token_id"), ([11] * 5000, "prompt_too_long")]
)
async def test_a_prompt_that_cannot_work_is_refused(vllm: Any, prompt: list[int], reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answer_to(vllm, a_request(prompt))

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert from_rpc_error(refused.value).reason == reason


async def test_text_is_refused(vllm: Any) -> None:
    request = a_request()
    request.text = "a prompt"

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answer_to(vllm, request)

    assert from_rpc_error(refused.value).field == "tokenized"


async def test_a_failed_step_is_an_error_that_quotes_nothing(vllm: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await answer_to(vllm, a_request([POISON]))

    assert failed.value.code() == grpc.StatusCode.INTERNAL
    assert from_rpc_error(failed.value).reason == "engine_step_failed"
    assert "secret" not in str(failed.value)


async def test_a_drain_ends_what_still_runs_with_unavailable(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "steps")
    async with running_engine("--vllm-service", env={"OCTAVO_FAKE_STEP_GATE": str(gate.path)}) as engine:
        call, answer = await begun(vllm_stub(engine.channel()), gate, a_request(max_tokens=ENDLESS))

        drain = engine.admin().Drain(admin_pb2.DrainRequest(grace_ms=1))
        await engine.logged("engine_draining")
        gate.let_pass(100)

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await rest_of(call, answer)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert from_rpc_error(ended.value).retry_after_s == 1
        await drain
    gate.close()
