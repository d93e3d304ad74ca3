from __future__ import annotations

import asyncio

import pytest
from octavo_router import wakeups as module
from octavo_router.wakeups import Wakeups


class Clock:
    """Takes the place of the module's `time`: stands still but for what is added."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Stream:
    """A task that sends what it has when it is woken; a message takes its time."""

    def __init__(self, clock, message_s):
        self.num_tokens = 0
        self.messages = []
        self._clock = clock
        self._message_s = message_s

    def wake(self):
        self.messages.append(self.num_tokens)
        self.num_tokens = 0
        self._clock.now += self._message_s


class Timers:
    """Pauses that were asked for; a test lets them pass."""

    def __init__(self, clock):
        self._clock = clock
        self._asked = []

    def call_later(self, delay, work):
        self._asked.append((delay, work))

    def __len__(self):
        return len(self._asked)

    async def let_pass(self):
        """Let the oldest pause pass; return how long it was."""
        delay, work = self._asked.pop(0)
        self._clock.now += delay
        work()
        await settle()
        return delay


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
async def timers(monkeypatch, clock):
    timers = Timers(clock)
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", timers.call_later)
    return timers


async def settle():
    for _ in range(4):
        await asyncio.sleep(0)


def step(wakeups, *streams):
    for stream in streams:
        stream.num_tokens += 1
    wakeups.soon(set(streams))


async def test_each_step_is_sent_at_once_while_there_is_time_to_spare(clock, timers):
    wakeups, streams = Wakeups(), [Stream(clock, message_s=0.0001) for _ in range(20)]
    for _ in range(5):
        step(wakeups, *streams)
        await settle()
        clock.now += 0.02
    assert all(stream.messages == [1] * 5 for stream in streams)
    assert not len(timers)


async def test_steps_that_come_in_the_pause_after_a_long_turn_leave_in_one_message(clock, timers):
    wakeups, streams = Wakeups(), [Stream(clock, message_s=0.0001) for _ in range(200)]
    step(wakeups, *streams)
    await settle()
    for _ in range(3):
        step(wakeups, *streams)
        await settle()
    assert await timers.let_pass() == pytest.approx(0.5 * 200 * 0.0001)
    assert all(stream.messages == [1, 3] for stream in streams)


async def test_pauses_too_short_for_a_timer_add_up(clock, timers):
    wakeups, stream = Wakeups(), Stream(clock, message_s=0.0008)
    for _ in range(4):
        step(wakeups, stream)
        await settle()
    assert stream.messages == [1] * 3
    assert await timers.let_pass() == pytest.approx(3 * 0.5 * 0.0008)
    assert stream.messages == [1] * 4


async def test_pause_has_a_longest(clock, timers):
    wakeups, stream = Wakeups(), Stream(clock, message_s=1.0)
    step(wakeups, stream)
    await settle()
    step(wakeups, stream)
    assert await timers.let_pass() == pytest.approx(0.05)


async def test_stream_that_is_due_twice_is_woken_once(clock, timers):
    wakeups, stream = Wakeups(), Stream(clock, message_s=0.0)
    step(wakeups, stream)
    step(wakeups, stream)
    await settle()
    assert stream.messages == [2]
    assert not len(timers)


async def test_tokens_that_come_while_others_send_are_sent_in_the_next_turn(clock, timers):
    wakeups = Wakeups()
    late = Stream(clock, message_s=0.0)

    class Busy(Stream):
        def wake(self):
            super().wake()
            step(wakeups, late)

    step(wakeups, Busy(clock, message_s=0.0))
    await settle()
    assert late.messages == [1]
    assert not len(timers)
