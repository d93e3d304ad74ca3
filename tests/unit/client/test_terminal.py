from __future__ import annotations

import pytest
from octavo.errors import InternalError
from octavo_client.cli.chat import Conversation, _command
from octavo_client.cli.console import printable
from octavo_client.cli.report import summary, tokens_per_second
from octavo_client.collector import Collector
from octavo_client.log_lines import loading_line, readable_line
from octavo_client.values import Accepted, Chunk, Completion, Finished, FinishReason, Message, Timing, Usage

ACCEPTED = Accepted(request_id="r", trace_id="", engine_id="engine-1", prompt_tokens=33, matched_pages=1, reason="")


def completion(*, output_tokens: int = 11, ttft_s: float | None = 0.5, num_moves: int = 0) -> Completion:
    collector = Collector()
    collector.add(ACCEPTED)
    collector.add(Chunk(index=0, text="Hi", position=0, num_tokens=output_tokens, token_ids=(), logprobs=()))
    collector.add(
        Finished(
            index=0,
            reason=FinishReason.STOP,
            stopped_by="",
            usage=Usage(prompt_tokens=33, cached_tokens=16, output_tokens=output_tokens),
            timing=Timing(),
            engine_id="engine-2",
            num_moves=num_moves,
        )
    )
    return collector.completion(ttft_s=ttft_s, duration_s=2.5)


def test_the_rate_counts_the_tokens_after_the_first() -> None:
    assert tokens_per_second(completion()) == pytest.approx(5.0)


@pytest.mark.parametrize(("output_tokens", "ttft_s"), [(1, 0.5), (0, None)])
def test_one_token_has_no_rate(output_tokens: int, ttft_s: float | None) -> None:
    assert tokens_per_second(completion(output_tokens=output_tokens, ttft_s=ttft_s)) is None


def test_the_summary_speaks_of_pages_if_their_size_is_known() -> None:
    assert summary(completion(), page_size=16) == (
        "11 tokens in 2.50 s, first after 500 ms, then 5 tokens/s, 1 of 2 prompt pages reused, engine-2"
    )
    assert "16 of 33 prompt tokens reused" in summary(completion())


def test_the_summary_tells_of_moves() -> None:
    assert summary(completion(num_moves=2)).endswith("moved 2 times")


def test_an_unasked_choice_is_an_error() -> None:
    with pytest.raises(InternalError, match="not asked for"):
        Collector(1).add(Chunk(index=1, text="", position=0, num_tokens=1, token_ids=(), logprobs=()))


def test_an_incomplete_stream_is_an_error() -> None:
    collector = Collector()
    collector.add(ACCEPTED)
    with pytest.raises(InternalError):
        collector.completion(ttft_s=None, duration_s=1.0)


def test_output_cannot_steer_the_terminal() -> None:
    assert printable("red\x1b[31m\r\x07 line\nnext\ttab é 日本 🎉") == "red[31m line\nnext\ttab é 日本 🎉"


def conversation() -> Conversation:
    return Conversation([Message("system", "s"), Message("user", "q"), Message("assistant", "a")])


def test_clear_keeps_the_system_message() -> None:
    talk = conversation()
    assert _command("/clear", talk) == ""
    assert talk.messages == [Message("system", "s")]


def test_system_starts_over() -> None:
    talk = conversation()
    assert _command("/system Be brief.", talk) == ""
    assert talk.messages == [Message("system", "Be brief.")]
    assert _command("/system", talk) == ""
    assert talk.messages == []


def test_retry_asks_the_last_question_again() -> None:
    talk = conversation()
    assert _command("/retry", talk) == "q"
    assert talk.messages == [Message("system", "s")]
    assert _command("/retry", talk) == ""


def test_quit_ends_and_other_commands_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert _command("/quit", conversation()) is None
    assert _command("/nonsense", conversation()) == ""
    assert "/clear" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"event": "model_loading", "stage": "load weights", "done": 0.25}', "load weights, 25 %"),
        ('{"event": "engine_listening"}', ""),
        ("plain text", ""),
        ("[1, 2]", ""),
        ('{"stage": "x", "done": "y"}', ""),
    ],
)
def test_loading_is_read_from_log_lines(line: str, expected: str) -> None:
    assert loading_line(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '{"port": 1, "event": "redis_up", "level": "info", "timestamp": "2026-01-02T03:04:05.6Z", "trace_id": "ab"}',
            "03:04:05 info redis_up port=1",
        ),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ("{}", ""),
    ],
)
def test_log_lines_are_made_readable(line: str, expected: str) -> None:
    assert readable_line(line) == expected
