from __future__ import annotations

import pytest
from octavo_engine.sequence import Priority, Request, Sampling, Sequence
from octavo_engine.waiting import WaitingQueue


def sequence(key: int, *, arrival_ns: int = 0, priority: Priority = Priority.INTERACTIVE) -> Sequence:
    request = Request(key=key, prompt=[1], sampling=Sampling(), priority=priority, arrival_ns=arrival_ns)
    return Sequence(request=request, tokens=[1])


def push(queue: WaitingQueue, waiting: Sequence, *, is_fresh: bool = True, prefill_ns: int = 0) -> Sequence:
    queue.push(waiting, is_fresh=is_fresh, num_tokens=10, prefill_ns=prefill_ns)
    queue.check()
    return waiting


@pytest.fixture
def queue() -> WaitingQueue:
    return WaitingQueue(allowance_ns=100)


def emptied(queue: WaitingQueue) -> list[int]:
    keys = []
    while (head := queue.head()) is not None:
        keys.append(head.request.key)
        queue.remove(head)
        queue.check()
    return keys


def test_an_empty_queue_has_no_head(queue: WaitingQueue):
    assert queue.head() is None
    assert queue.num_tokens == 0


def test_the_first_to_come_goes_first(queue: WaitingQueue):
    for key in (2, 1, 3):
        push(queue, sequence(key, arrival_ns=key))
    assert queue.num_tokens == 30
    assert emptied(queue) == [1, 2, 3]
    assert queue.num_tokens == 0


def test_a_short_prefill_goes_before_a_long_one_that_came_just_before(queue: WaitingQueue):
    push(queue, sequence(1, arrival_ns=0), prefill_ns=50)
    push(queue, sequence(2, arrival_ns=20), prefill_ns=10)
    push(queue, sequence(3, arrival_ns=45), prefill_ns=10)
    assert emptied(queue) == [2, 1, 3]


def test_those_who_return_go_before_those_who_never_ran(queue: WaitingQueue):
    push(queue, sequence(1, arrival_ns=0))
    push(queue, sequence(2, arrival_ns=50), is_fresh=False)
    assert emptied(queue) == [2, 1]


def test_batch_goes_as_if_it_had_come_later_by_its_allowance(queue: WaitingQueue):
    push(queue, sequence(1, arrival_ns=0, priority=Priority.BATCH))
    push(queue, sequence(2, arrival_ns=99))
    push(queue, sequence(3, arrival_ns=101))
    assert emptied(queue) == [2, 1, 3]


def test_returning_batch_does_not_go_before_interactive(queue: WaitingQueue):
    push(queue, sequence(1, arrival_ns=0, priority=Priority.BATCH), is_fresh=False)
    push(queue, sequence(2, arrival_ns=50))
    assert emptied(queue) == [2, 1]


def test_anyone_can_leave_the_queue(queue: WaitingQueue):
    leaving = push(queue, sequence(1))
    push(queue, sequence(2))
    queue.remove(leaving)
    assert leaving not in queue
    assert emptied(queue) == [2]


def test_nobody_waits_twice(queue: WaitingQueue):
    waiting = push(queue, sequence(1))
    with pytest.raises(AssertionError, match="waits twice"):
        push(queue, waiting)
