"""Turns and places on a real event loop; the gate is a test's own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from octavo.errors import DeadlineExceeded, Overloaded, Unavailable
from octavo_router.admission import Admission, Demand
from octavo_router.admission_queue import AdmissionQueue, QueueLimits
from octavo_router.fair_queue import ServiceClass
from octavo_router.journal import Ending, Journal, Limits
from octavo_router.metrics import RouterMetrics
from octavo_router.routing import Prompt
from octavo_router.turns import Turns

FOREVER = 1e12


class HandGate:
    """Lets as many through as it has room for."""

    def __init__(self):
        self.room = 0
        self.has_engines = True

    def is_open(self, _ticket, *, num_running):
        return num_running < self.room

    def uncached_tokens(self, prompt):
        return len(prompt)


class Hall:
    """An admission under test."""

    def __init__(self, *, max_in_flight=100, no_engine_s=10.0, **limits):
        self.gate = HandGate()
        self.metrics = RouterMetrics()
        self.order = []
        queue = AdmissionQueue(QueueLimits(fair_quantum_tokens=10, **limits))
        turns = Turns(queue, gate=self.gate, metrics=self.metrics, no_engine_s=no_engine_s)
        self.admission = Admission(turns, max_in_flight=max_in_flight, metrics=self.metrics)
        self.ends = asyncio.Event()
        self._turned = asyncio.Event()

    @property
    def queue(self):
        return self.admission.turns.queue

    def call(self, name, *, tenant="a", prompt_len=9, **demand):
        """Start a call that runs from its turn to `ends`; its name goes into `order` with the turn."""
        return asyncio.create_task(self._call(name, tenant, prompt_len, demand))

    async def _call(self, name, tenant, prompt_len, demand):
        with self.admission.enter() as place:
            if not place.ask(demand_of(tenant, **demand), Prompt(list(range(prompt_len)))):
                await place.wait()
            self.order.append(name)
            self._turned.set()
            journal = journal_of(prompt_len)
            place.runs(journal)
            await self.ends.wait()
            journal.choices[0].token_ids.append(1)
            journal.end_all(Ending.LENGTH)

    async def turns(self, num_turns):
        """Wait until so many have had their turn."""
        async with asyncio.timeout(2):
            while len(self.order) < num_turns:
                self._turned.clear()
                await self._turned.wait()

    async def settled(self):
        """Let everything happen that needs no time to pass."""
        for _ in range(200):
            await asyncio.sleep(0)

    def refusals(self, reason):
        return self.metrics.refusals.labels(reason)._value.get()


def demand_of(tenant="a", *, service_class=ServiceClass.INTERACTIVE, deadline=FOREVER, max_tokens=1):
    return Demand(tenant=tenant, service_class=service_class, deadline=deadline, max_tokens=max_tokens, num_choices=1)


def journal_of(prompt_len):
    limits = Limits(max_tokens=100, min_tokens=0, stop_token_ids=frozenset())
    return Journal(list(range(prompt_len)), num_choices=1, limits=limits)


@asynccontextmanager
async def calls(hall, *tasks):
    """Wait for calls in the end, whatever becomes of them."""
    try:
        yield
    finally:
        hall.gate.room = 1000
        hall.ends.set()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_request_with_room_has_its_turn_without_waiting():
    hall = Hall()
    hall.gate.room = 1
    async with calls(hall, hall.call("one")):
        await hall.settled()
        assert hall.order == ["one"]
        assert len(hall.queue) == 0


async def test_waiting_requests_have_their_turns_in_fair_order_as_room_appears():
    hall = Hall()
    tasks = [hall.call(f"flood-{number}", tenant="flood") for number in range(5)]
    await hall.settled()
    tasks.append(hall.call("other", tenant="other"))
    async with calls(hall, *tasks):
        await hall.settled()
        assert (hall.order, len(hall.queue)) == ([], 6)
        hall.gate.room = 3
        await hall.turns(3)
        assert hall.order == ["flood-0", "other", "flood-1"]


async def test_request_that_ends_lets_the_next_one_go_at_once():
    hall = Hall()
    hall.gate.room = 1
    first, second = hall.call("first"), hall.call("second")
    async with calls(hall, first, second):
        await hall.settled()
        first.cancel()
        await hall.settled()
        assert hall.order == ["first", "second"]


async def test_next_turn_waits_until_the_last_one_shows_at_its_engine():
    hall = Hall()
    hall.gate.room = 1
    with hall.admission.enter() as running, hall.admission.enter() as slow, hall.admission.enter() as next_one:
        assert running.ask(demand_of(), Prompt([1]))
        assert not slow.ask(demand_of(), Prompt([1]))
        assert not next_one.ask(demand_of(), Prompt([1]))
        hall.gate.room = 3
        await slow.wait()
        assert hall.queue.num_running == 2
        slow.runs(journal_of(1))
        assert hall.queue.num_running == 3
        await next_one.wait()


async def test_request_that_never_reaches_an_engine_does_not_stop_the_others():
    hall = Hall()
    with hall.admission.enter() as lost, hall.admission.enter() as next_one:
        for place in (lost, next_one):
            assert not place.ask(demand_of(), Prompt([1]))
        hall.gate.room = 2
        async with asyncio.timeout(2):
            await lost.wait()
            await next_one.wait()


async def test_cancelled_while_queued_frees_its_place():
    hall = Hall()
    tasks = [hall.call("one"), hall.call("two")]
    async with calls(hall, *tasks):
        await hall.settled()
        tasks[0].cancel()
        await hall.settled()
        assert (len(hall.queue), hall.admission.num_in_flight) == (1, 1)
        hall.queue.check()
    assert hall.order == ["two"]
    assert (hall.admission.num_in_flight, hall.queue.num_running, hall.queue.num_tenants) == (0, 0, 0)


async def test_cancelled_in_the_moment_of_its_turn_gives_the_turn_back():
    hall = Hall()
    hall.gate.room = 1
    first, second, third = hall.call("first"), hall.call("second"), hall.call("third")
    async with calls(hall, first, second, third):
        await hall.settled()
        first.cancel()
        second.cancel()
        await hall.settled()
        assert hall.order == ["first", "third"]
        hall.queue.check()


async def test_refusal_comes_before_anything_is_awaited():
    hall = Hall(max_queued_tokens=10)
    async with calls(hall, hall.call("one")):
        await hall.settled()
        with hall.admission.enter() as place:
            with pytest.raises(Overloaded) as early:
                place.announce(demand_of())
            with pytest.raises(Overloaded) as exact:
                place.ask(demand_of(), Prompt([1]))
        assert early.value.reason == exact.value.reason == "queue_full"
        assert early.value.retry_after_s > 0
        assert hall.refusals("queue_full") == 2


async def test_request_that_makes_room_in_a_full_queue_ends_with_an_error():
    hall = Hall(max_queued_tokens=40)
    flood = [hall.call(str(number), tenant="flood") for number in range(4)]
    await hall.settled()
    other = hall.call("other", tenant="other")
    async with calls(hall, *flood, other):
        await hall.settled()
        assert flood[-1].done()
        with pytest.raises(Overloaded):
            await flood[-1]
        assert not other.done()


async def test_deadline_that_passes_while_queued_ends_the_request():
    hall = Hall()
    deadline = asyncio.get_running_loop().time() + 0.05
    task = hall.call("late", deadline=deadline)
    async with asyncio.timeout(2):
        with pytest.raises(DeadlineExceeded):
            await task
    assert hall.refusals("deadline_in_queue") == 1


async def test_queue_waits_for_an_engine_to_come_back_but_not_for_ever():
    hall = Hall(no_engine_s=0.05)
    hall.gate.has_engines = False
    async with asyncio.timeout(2):
        with pytest.raises(Unavailable):
            await hall.call("alone")
    hall = Hall(no_engine_s=30.0)
    hall.gate.has_engines = False
    task = hall.call("patient")
    async with calls(hall, task):
        await asyncio.sleep(0.05)
        assert not task.done()
    assert hall.order == ["patient"]


async def test_what_began_elsewhere_goes_ahead_of_everyone():
    hall = Hall()
    async with calls(hall, hall.call("one")):
        await hall.settled()
        with hall.admission.enter() as place:
            place.go_on(demand_of(), Prompt([1]))
            assert hall.queue.num_running == 1
        assert len(hall.queue) == 1


async def test_drain_lets_the_queue_end_and_takes_nothing_new():
    hall = Hall()
    tasks = [hall.call("one"), hall.call("two")]
    await hall.settled()
    draining = asyncio.create_task(hall.admission.drain(5.0))
    await hall.settled()
    with pytest.raises(Unavailable):
        await hall.call("three")
    hall.gate.room = 2
    hall.ends.set()
    assert await draining == 0
    assert hall.order == ["one", "two"]
    await asyncio.gather(*tasks)


async def test_drain_gives_up_after_its_grace():
    hall = Hall()
    async with calls(hall, hall.call("one"), hall.call("two")):
        await hall.settled()
        assert await hall.admission.drain(0.01) == 2


async def test_places_are_bounded():
    hall = Hall(max_in_flight=1)
    with hall.admission.enter(), pytest.raises(Overloaded) as caught, hall.admission.enter():
        pass
    assert caught.value.reason == "too_many_requests"
    with hall.admission.enter():
        pass


async def test_queue_is_told_what_was_used_in_the_end():
    hall = Hall()
    hall.gate.room = 1
    task = hall.call("one", max_tokens=10_000)
    await hall.settled()
    assert hall.queue.tokens_in_flight > 100, "no output has been seen: a long one is expected"
    hall.ends.set()
    await task
    assert hall.queue.tokens_in_flight == 0
    assert hall.queue.expected_output(10_000) < 256
