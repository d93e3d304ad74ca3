from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import Result
from octavo.errors import InvalidRequest, Overloaded
from octavo.v1 import inference_pb2
from octavo_client.cli.main import app
from support.scripted_router import Context, ScriptedRouter, accepted, chunk, engine_status, finished
from typer.testing import CliRunner

Responses = AsyncIterator[inference_pb2.GenerateResponse]


@pytest.fixture(autouse=True)
def no_stack_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    for name in ("OCTAVO_ROUTER", "OCTAVO_ROUTER_ADMIN", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


async def octavo(*arguments: str, text: str | None = None) -> Result:
    """Run a command in a thread of its own, so that it can talk to a server in this one."""
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), input=text)


async def test_generate_streams_text_and_sums_up_on_stderr(router: ScriptedRouter) -> None:
    result = await octavo(
        "generate", "Hi", "--router", router.address, "--max-tokens", "5", "--stop", "x", "--seed", "3"
    )
    assert result.exit_code == 0
    assert result.stdout == "Hello\n"
    assert "2 tokens in" in result.stderr
    sampling = router.requests[0].sampling
    assert (sampling.max_tokens, sampling.seed, list(sampling.stop)) == (5, 3, ["x"])


@pytest.mark.parametrize("url", ["", "localhost:6379", "redis://:hunter2@"])
async def test_up_refuses_a_redis_url_that_is_none_before_it_starts_anything(url: str) -> None:
    result = await octavo("up", "--redis-url", url)
    assert result.exit_code == 1
    assert "the Redis URL" in result.stderr
    assert "hunter2" not in result.output


async def test_generate_prints_json_for_programs(router: ScriptedRouter) -> None:
    result = await octavo("generate", "Hi", "--router", router.address, "--json")
    answer = json.loads(result.stdout)
    assert answer["choices"][0]["text"] == "Hello"
    assert answer["usage"] == {"prompt_tokens": 9, "cached_tokens": 4, "output_tokens": 2}
    assert result.stderr == ""


async def test_generate_and_chat_take_penalties(router: ScriptedRouter) -> None:
    flags = ("--frequency-penalty", "0.5", "--presence-penalty", "-1", "--repetition-penalty", "1.25")
    await octavo("generate", "Hi", "--router", router.address, *flags)
    await octavo("chat", "--router", router.address, *flags, text="Hi\n")
    for request in router.requests:
        sampling = request.sampling
        assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty) == (0.5, -1, 1.25)
    assert len(router.requests) == 2
    refused = await octavo("generate", "Hi", "--router", router.address, "--repetition-penalty", "0")
    assert refused.exit_code == 2


async def test_generate_reads_standard_input(router: ScriptedRouter) -> None:
    await octavo("generate", "-", "--router", router.address, text="from a pipe")
    assert router.requests[0].input.text == "from a pipe"


async def test_generate_asks_as_a_chat(router: ScriptedRouter) -> None:
    await octavo("generate", "Hi", "--chat", "--system", "Be brief.", "--router", router.address)
    sent = [(message.role, message.content) for message in router.requests[0].input.chat.messages]
    assert sent == [("system", "Be brief."), ("user", "Hi")]


async def test_several_answers_are_printed_whole(router: ScriptedRouter) -> None:
    async def two(_request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
        yield accepted()
        yield chunk("a", 0, index=0)
        yield chunk("b", 0, index=1)
        yield finished(0)
        yield finished(1)

    router.script = two
    result = await octavo("generate", "Hi", "-n", "2", "--router", router.address)
    assert result.stdout.splitlines() == ["[0] stop", "a", "[1] stop", "b"]


async def test_an_error_is_one_line_and_status_1(router: ScriptedRouter) -> None:
    async def refuse(_request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
        raise Overloaded("too_many_requests", "1024 requests run; the limit is 1024 [now]", retry_after_s=1.5)
        yield accepted()

    router.script = refuse
    result = await octavo("generate", "Hi", "--router", router.address)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "the limit is 1024 [now] too_many_requests" in result.stderr
    assert "Try again in 1.5 s." in result.stderr


async def test_without_a_router_the_remedy_is_named() -> None:
    result = await octavo("models", "--router", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "octavo up" in result.stderr


async def test_models_engines_and_explain_print_tables(router: ScriptedRouter) -> None:
    router.engines = [engine_status("engine-1"), engine_status("engine-2", "suspect")]
    models = await octavo("models", "--router", router.address)
    engines = await octavo("engines", "--admin", router.address)
    explained = await octavo("explain", "Hi", "--router", router.address)
    assert "tiny" in models.stdout
    assert "suspect" in engines.stdout
    assert "engine-1, engine-2: tiny on cpu by torch" in engines.stdout
    assert explained.stdout.index("engine-2") < explained.stdout.index("engine-1")
    assert "9 prompt tokens, 2 full pages" in explained.stdout


async def test_models_engines_and_explain_print_json(router: ScriptedRouter) -> None:
    router.engines = [engine_status("engine-1")]
    models = await octavo("models", "--router", router.address, "--json")
    engines = await octavo("engines", "--admin", router.address, "--json")
    explained = await octavo("explain", "Hi", "--router", router.address, "--json")
    assert json.loads(models.stdout)[0]["name"] == "tiny"
    assert json.loads(engines.stdout)[0]["pages_cached"] == 8
    assert json.loads(explained.stdout)["candidates"][0]["cost_s"] == 0.01


async def test_engines_without_a_stack_needs_the_address() -> None:
    result = await octavo("engines")
    assert result.exit_code == 1
    assert "--admin" in result.stderr


async def test_chat_keeps_the_conversation(router: ScriptedRouter) -> None:
    result = await octavo(
        "chat", "--router", router.address, "--system", "Be brief.", text="Hi\n\nAgain\n/quit\nnever\n"
    )
    assert result.exit_code == 0
    assert result.stdout == "Hello\nHello\n"
    assert len(router.requests) == 2
    last = [message.content for message in router.requests[1].input.chat.messages]
    assert last == ["Be brief.", "Hi", "Hello", "Again"]


async def test_a_refused_question_is_not_kept(router: ScriptedRouter) -> None:
    async def refuse_long(request: inference_pb2.GenerateRequest, _context: Context) -> Responses:
        if request.input.chat.messages[-1].content == "long":
            raise InvalidRequest("prompt_too_long", "70 tokens; at most 63")
        for response in (accepted(), chunk("Hello", 0), finished()):
            yield response

    router.script = refuse_long
    result = await octavo("chat", "--router", router.address, text="long\nshort\n")
    assert result.exit_code == 0
    assert "at most 63" in result.stderr
    assert [message.content for message in router.requests[1].input.chat.messages] == ["short"]


async def test_model_path_names_the_remedy() -> None:
    result = await octavo("model", "path")
    assert result.exit_code == 1
    assert "octavo model prepare" in result.stderr


async def test_the_version_is_told() -> None:
    result = await octavo("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("octavo 0.")
