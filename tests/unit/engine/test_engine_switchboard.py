from __future__ import annotations

import msgspec
import pytest
from octavo.errors import InvalidRequest, Overloaded, Unavailable
from octavo.v1 import engine_pb2, types_pb2
from octavo_engine import messages
from octavo_engine.clock import Clock
from octavo_engine.live_request import LiveRequest
from octavo_engine.sequence import FinishReason
from octavo_engine.switchboard import Switchboard
from octavo_engine.validation import Validator

FACTS = messages.Ready("m", "r", "t", 1000, 500, [2], 4, 400, "torch", "cpu", "float32", "exact", 64, 8, 0.0)
NO_LOAD = messages.LoadReport(0, 0, 0, 0, 0, 0, 0.0, 0.0)
CLOCK = Clock(offset_ns=1_000_000)


class RecordingCore:
    def __init__(self) -> None:
        self.commands: list[messages.Command] = []

    def send(self, command: messages.Command) -> None:
        self.commands.append(command)

    async def drained(self) -> None:
        return


class RecordingReader:
    def __init__(self) -> None:
        self.number = 0
        self.received: list[engine_pb2.LinkResponse] = []

    def deliver(self, response: engine_pb2.LinkResponse) -> None:
        self.received.append(response)


def a_submit(stream_id: int, num_prompt: int = 3, n: int = 1) -> engine_pb2.Submit:
    sampling = types_pb2.SamplingParams(seed=1, max_tokens=9, n=n)
    return engine_pb2.Submit(
        stream_id=stream_id, request_id=f"r-{stream_id}", prompt_token_ids=[5] * num_prompt, sampling=sampling
    )


def a_frame(**columns: object) -> messages.StepFrame:
    empty = messages.StepFrame(1, 100, 200, 0, [], [], [], [], [], [], [], [], [], [], [], NO_LOAD)
    return msgspec.structs.replace(empty, **columns)


def an_end(key: int, choice: int = 0, *, last: bool = True, **fields: object) -> messages.EndEvent:
    end = messages.EndEvent(key, choice, FinishReason.LENGTH, last, None, 9, 0, 1000, 3000, 7000, 2, 1, 4, 5, "")
    return msgspec.structs.replace(end, **fields)


class Board:
    """A switchboard with two readers and a core that records."""

    def __init__(self, **limits: int) -> None:
        self.finished: list[LiveRequest] = []
        self.core = RecordingCore()
        self.board = Switchboard(
            clock=CLOCK,
            **{"max_waiting": 10, "max_waiting_tokens": 100} | limits,
            on_finish=[lambda request, _: self.finished.append(request)],
        )
        self.board.open(self.core, Validator(FACTS))
        self.first, self.second = RecordingReader(), RecordingReader()
        self._plugs = [self.board.plugged(self.first), self.board.plugged(self.second)]
        for plug in self._plugs:
            plug.__enter__()

    def key(self, reader: RecordingReader, stream_id: int) -> int:
        return reader.number << 32 | stream_id

    def unplug_first(self) -> None:
        self._plugs[0].__exit__(None, None, None)


async def test_a_step_is_split_among_its_readers_in_order() -> None:
    b = Board()
    mine, theirs = b.key(b.first, 1), b.key(b.second, 1)
    b.board.submit(b.first, a_submit(1))
    b.board.submit(b.second, a_submit(1))

    b.board.take_step(
        a_frame(
            keys=[mine, theirs, mine],
            choices=[0, 1, 2],
            positions=[4, 5, 6],
            token_ids=[14, 15, 16],
            logprobs=[-1.0, -2.0, -3.0],
        )
    )

    (step,) = [message.step for message in b.first.received]
    assert (step.step_id, step.started_ns, step.ended_ns) == (1, 1_000_100, 1_000_200)
    assert list(step.stream_ids) == [1, 1]
    assert list(step.choices) == [0, 2]
    assert list(step.positions) == [4, 6]
    assert list(step.token_ids) == [14, 16]
    assert list(step.logprobs) == [-1.0, -3.0]
    assert list(b.second.received[0].step.token_ids) == [15]


async def test_choices_are_left_out_when_all_are_zero() -> None:
    b = Board()
    b.board.submit(b.first, a_submit(1))
    b.board.take_step(a_frame(keys=[b.key(b.first, 1)], choices=[0], positions=[0], token_ids=[7], logprobs=[0.0]))

    assert list(b.first.received[0].step.choices) == []


async def test_the_last_end_carries_the_sums_of_all_choices() -> None:
    b = Board()
    key = b.key(b.first, 1)
    b.board.submit(b.first, a_submit(1, n=2))
    arrival = b.core.commands[0].arrival_ns  # type: ignore[union-attr]
    times = {"first_planned_ns": arrival + 10, "first_token_ns": arrival + 30, "last_token_ns": arrival + 70}
    b.board.take_step(a_frame(started=[messages.StartedEvent(key, 2, arrival + 10)]))
    b.board.take_step(
        a_frame(ends=[an_end(key, 1, last=False, **times), an_end(key, 0, **times | {"last_token_ns": arrival + 90})])
    )

    started = b.first.received[0].step.started[0]
    end = b.first.received[1].step.ends[1]
    assert (started.cached_tokens, started.queue_ns) == (2, 10)
    assert (end.usage.prompt_tokens, end.usage.cached_tokens, end.usage.output_tokens) == (3, 2, 18)
    assert (end.timing.queue_ns, end.timing.prefill_ns, end.timing.decode_ns) == (10, 20, 60)
    assert (end.timing.num_preemptions, end.timing.peak_pages) == (2, 5)
    assert len(b.board) == 0
    assert [request.request_id for request in b.finished] == ["r-1"]


async def test_a_reader_that_leaves_has_its_requests_cancelled_and_hears_nothing_more() -> None:
    b = Board()
    b.board.submit(b.first, a_submit(1))
    b.board.submit(b.second, a_submit(1))
    b.unplug_first()

    assert b.core.commands[2:] == [messages.Cancel(b.key(b.first, 1))]
    b.board.take_step(a_frame(ends=[an_end(b.key(b.first, 1), reason=FinishReason.CANCELLED)]))
    assert b.first.received == []
    assert len(b.finished) == 1


async def test_results_of_unknown_requests_are_ignored() -> None:
    b = Board()
    stranger = b.key(b.first, 8)
    b.board.take_step(
        a_frame(
            started=[messages.StartedEvent(stranger, 0, 1)],
            chunks=[messages.ChunkEvent(stranger, 0, 0, 4)],
            preempted=[messages.PreemptedEvent(stranger, 0, 1)],
            ends=[an_end(stranger)],
        )
    )

    assert b.first.received == []
    assert b.finished == []


async def test_waiting_requests_are_bounded_and_those_that_started_make_room() -> None:
    b = Board(max_waiting=2)
    b.board.submit(b.first, a_submit(1))
    b.board.submit(b.first, a_submit(2))
    with pytest.raises(Overloaded) as refused:
        b.board.submit(b.first, a_submit(3))
    assert refused.value.retry_after_s is not None

    b.board.take_step(a_frame(started=[messages.StartedEvent(b.key(b.first, 1), 0, 1)]))
    b.board.submit(b.first, a_submit(3))


async def test_waiting_tokens_are_bounded_but_one_request_may_always_wait() -> None:
    b = Board(max_waiting_tokens=10)
    b.board.submit(b.first, a_submit(1, num_prompt=50))
    with pytest.raises(Overloaded, match="50 prompt tokens wait"):
        b.board.submit(b.first, a_submit(2))

    b.board.take_step(a_frame(ends=[an_end(b.key(b.first, 1))]))
    b.board.submit(b.first, a_submit(2))


async def test_the_time_to_come_again_follows_the_measured_rate() -> None:
    b = Board(max_waiting=1)
    b.board.submit(b.first, a_submit(1, num_prompt=90))
    b.board.take_step(a_frame(load=msgspec.structs.replace(NO_LOAD, prefill_tokens_per_s=30.0)))

    with pytest.raises(Overloaded) as refused:
        b.board.submit(b.first, a_submit(2))
    assert refused.value.retry_after_s == 3.0


async def test_a_refused_request_leaves_no_trace() -> None:
    b = Board()
    with pytest.raises(InvalidRequest):
        b.board.submit(b.first, a_submit(1, num_prompt=0))

    assert (len(b.board), b.core.commands, b.board.idle.is_set()) == (0, [], True)


async def test_only_a_higher_credit_reaches_the_core() -> None:
    b = Board()
    key = b.key(b.first, 1)
    b.board.submit(b.first, a_submit(1))
    for tokens in (5, 5, 4, 6):
        b.board.credit(b.first, 1, tokens)
    b.board.credit(b.first, 99, 7)

    assert b.core.commands[1:] == [messages.Credit(key, 5), messages.Credit(key, 6)]


async def test_cancel_of_an_unknown_stream_is_ignored() -> None:
    b = Board()
    b.board.cancel(b.first, 3)

    assert b.core.commands == []


async def test_a_closed_switchboard_takes_nothing_and_lets_what_runs_go_on() -> None:
    b = Board()
    b.board.submit(b.first, a_submit(1))
    b.board.refuse(Unavailable("draining", "draining"))

    with pytest.raises(Unavailable, match="draining"):
        b.board.submit(b.first, a_submit(2))
    b.board.cancel(b.first, 1)
    assert b.core.commands[-1] == messages.Cancel(b.key(b.first, 1))


async def test_before_the_model_is_loaded_a_request_is_told_to_wait() -> None:
    board = Switchboard(clock=CLOCK, max_waiting=1, max_waiting_tokens=1)
    with pytest.raises(Unavailable) as refused:
        board.submit(RecordingReader(), a_submit(1))
    assert refused.value.reason == "model_loading"


async def test_end_all_ends_every_open_choice_once() -> None:
    b = Board()
    b.board.submit(b.first, a_submit(1, n=3))
    b.board.submit(b.second, a_submit(1))
    b.board.take_step(a_frame(ends=[an_end(b.key(b.first, 1), 1, last=False)]))

    b.board.end_all(FinishReason.ERROR, "engine_core_failed")
    b.board.end_all(FinishReason.ERROR, "engine_core_failed")

    ends = [end for message in b.first.received[1:] for end in message.step.ends]
    assert [(end.choice, end.reason, end.error) for end in ends] == [
        (0, types_pb2.FINISH_REASON_ERROR, "engine_core_failed"),
        (2, types_pb2.FINISH_REASON_ERROR, "engine_core_failed"),
    ]
    assert len(b.finished) == 2
    assert b.board.idle.is_set()


async def test_load_counts_what_is_still_on_its_way_to_the_core() -> None:
    b = Board()
    b.board.submit(b.first, a_submit(1, num_prompt=30))
    b.board.submit(b.first, a_submit(2, num_prompt=40))
    before = b.board.load.message()
    b.board.take_step(a_frame(load=msgspec.structs.replace(NO_LOAD, num_running=1, waiting_tokens=10, num_taken=1)))
    after = b.board.load.message()

    assert (before.num_waiting, before.waiting_tokens) == (2, 70)
    assert (after.num_waiting, after.waiting_tokens, after.num_running) == (1, 50, 1)


async def test_load_counts_a_request_on_its_way_by_what_its_router_expects_to_be_computed() -> None:
    b = Board()
    for stream_id, expected, num_committed in ((1, 14, 0), (2, 0, 0), (3, 99, 0), (4, 14, 5)):
        submit = a_submit(stream_id, num_prompt=20)
        submit.expected_cached_tokens = expected
        if num_committed:
            submit.committed.add(token_ids=[7] * num_committed)
        b.board.submit(b.first, submit)

    assert b.board.load.message().waiting_tokens == 6 + 20 + 1 + 11
    assert [command.expected_cached for command in b.core.commands] == [14, 0, 99, 14]


async def test_only_open_choices_of_a_request_are_cancelled() -> None:
    b = Board()
    key = b.key(b.first, 1)
    b.board.submit(b.first, a_submit(1, n=3))
    b.board.take_step(a_frame(ends=[an_end(key, 1, last=False)]))

    b.board.cancel(b.first, 1, [2, 1, 7])
    b.board.cancel(b.first, 1, [1])
    b.board.cancel(b.first, 1)

    assert b.core.commands[1:] == [messages.Cancel(key, (2,)), messages.Cancel(key)]


async def test_a_start_tells_when_it_was() -> None:
    b = Board()
    b.board.submit(b.first, a_submit(1))
    b.board.take_step(a_frame(started=[messages.StartedEvent(b.key(b.first, 1), 0, 70)]))

    assert b.first.received[0].step.started[0].at_ns == 1_000_070


async def test_a_switchboard_that_refuses_before_it_opens_takes_nothing() -> None:
    board = Switchboard(clock=CLOCK, max_waiting=1, max_waiting_tokens=1)
    board.refuse(Unavailable("draining", "draining"))
    board.open(RecordingCore(), Validator(FACTS))

    with pytest.raises(Unavailable, match="draining"):
        board.submit(RecordingReader(), a_submit(1))
