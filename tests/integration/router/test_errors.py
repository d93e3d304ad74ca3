from __future__ import annotations

import math

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from octavo.v1 import admin_pb2, engine_pb2, inference_pb2, types_pb2
from support.router_client import request


async def status_of(call):
    """Return the code and details of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    details = {}
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                message = details[kind.__name__] = kind()
                packed.Unpack(message)
    return caught.value.code(), details


INVALID = {
    "sampling.n": {"n": 9},
    "sampling.temperature": {"temperature": math.nan},
    "sampling.top_p": {"top_p": 0.0},
    "sampling.min_p": {"min_p": math.inf},
    "sampling.min_tokens": {"min_tokens": 9},
    "sampling.stop_token_ids": {"stop_token_ids": [512]},
    "sampling.stop": {"stop": ["x" * 129]},
    "sampling.frequency_penalty": {"frequency_penalty": 2.5},
    "sampling.presence_penalty": {"presence_penalty": -2.5},
    "sampling.repetition_penalty": {"repetition_penalty": 0.0},
}


@pytest.mark.parametrize("field", INVALID)
async def test_impossible_sampling_names_its_field(field, new_engine, new_router):
    router = await new_router(await new_engine("e1"))
    code, details = await status_of(router.generate(**INVALID[field]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == field
    assert details["ErrorInfo"].domain == "octavo"
    assert details["ErrorInfo"].reason == "invalid_sampling"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "empty_prompt"),
        ([1, 512], "invalid_token_id"),
        ([1] * 4096, "prompt_too_long"),
        ([("robot", "hi")], "invalid_chat"),
        ("x" * 2000, "prompt_too_large"),
    ],
)
async def test_impossible_prompt_is_refused_with_a_reason(prompt, reason, new_engine, new_router):
    router = await new_router(
        await new_engine("e1"), max_prompt_bytes=1000 if reason == "prompt_too_large" else 100_000
    )
    code, details = await status_of(router.generate(prompt))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["ErrorInfo"].reason == reason


async def test_missing_input_is_refused(new_engine, new_router):
    router = await new_router(await new_engine("e1"))
    code, details = await status_of(router.inference.Tokenize(inference_pb2.TokenizeRequest()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["ErrorInfo"].reason == "missing_input"


async def test_unknown_model_is_not_found(new_engine, new_router):
    router = await new_router(await new_engine("e1"))
    asked = request()
    asked.model = "other"

    async def generate():
        async for _ in router.inference.Generate(asked):
            pass

    code, details = await status_of(generate())
    assert code is grpc.StatusCode.NOT_FOUND
    assert details["ErrorInfo"].reason == "model_not_found"


@pytest.mark.parametrize("value", ["with blank", "x" * 129])
async def test_unfit_request_id_is_refused(value, new_engine, new_router):
    router = await new_router(await new_engine("e1"))
    code, details = await status_of(router.generate(metadata=(("x-request-id", value),)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == "metadata.x-request-id"


async def test_without_engines_requests_are_refused_with_a_time_to_retry(new_router):
    router = await new_router()
    code, details = await status_of(router.generate())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert details["ErrorInfo"].reason == "no_engine"
    assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0


async def test_beyond_the_limit_requests_are_refused_with_a_time_to_retry(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine, max_in_flight=1)
    engine.hold_at = 0
    first = router.inference.Generate(request())
    await first.read()
    code, details = await status_of(router.generate())
    first.cancel()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["ErrorInfo"].reason == "too_many_requests"
    assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0


async def test_refusal_of_every_engine_reaches_the_client(new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2")]
    router = await new_router(*engines)
    for engine in engines:
        engine.rejection = engine_pb2.Rejected(code=8, reason="queue_full", message="full", retry_after_ms=250)
    code, details = await status_of(router.generate())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["ErrorInfo"].reason == "queue_full"
    assert details["RetryInfo"].retry_delay.ToMilliseconds() == 250
    assert [len(engine.submits) for engine in engines] == [1, 1]


async def test_request_that_an_engine_calls_invalid_is_tried_nowhere_else(new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2")]
    router = await new_router(*engines)
    for engine in engines:
        engine.rejection = engine_pb2.Rejected(code=3, reason="bad", message="no")
    code, _ = await status_of(router.generate())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert sum(len(engine.submits) for engine in engines) == 1


async def test_bug_becomes_internal_without_any_text(new_engine, new_router, monkeypatch, capsys):
    router = await new_router(await new_engine("e1"))

    def broken(text):
        raise ValueError(text)

    monkeypatch.setattr(router.router._tokenizer.tokenizer, "encode_text", broken)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.generate("my secret", metadata=(("x-request-id", "r-17"),))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "r-17" in caught.value.details()
    assert "secret" not in caught.value.details()
    assert "secret" not in capsys.readouterr().out
    for span in router.spans.get_finished_spans():
        assert "secret" not in span.to_json()


async def test_tokenize_and_list_models(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    message = inference_pb2.Input(text="hello world")
    tokens = await router.inference.Tokenize(inference_pb2.TokenizeRequest(input=message))
    await router.generate("hello world")
    assert list(tokens.token_ids) == list(engine.submits[0].prompt_token_ids)
    models = (await router.inference.ListModels(inference_pb2.ListModelsRequest())).models
    assert [(model.name, model.revision) for model in models] == [("tiny", "r1")]
    assert isinstance(models[0], types_pb2.ModelInfo)


async def test_top_k_beyond_the_vocabulary_keeps_all(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    await router.generate(top_k=1_000_000)
    assert len(engine.submits) == 1


async def test_method_that_a_router_does_not_have_is_refused_with_a_reason(new_router):
    router = await new_router()
    code, details = await status_of(router.admin.FlushPrefixCache(admin_pb2.FlushPrefixCacheRequest()))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert details["ErrorInfo"].reason == "not_an_engine"
