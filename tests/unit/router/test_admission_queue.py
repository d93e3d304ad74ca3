from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo.errors import DeadlineExceeded, Overloaded
from octavo_router.admission_queue import OTHERS, AdmissionQueue, QueueLimits
from octavo_router.fair_queue import ServiceClass, Ticket
from octavo_router.pace import Spent


def whole(num_output):
    return Spent(tokens=10, num_output=num_output, is_whole=True)


BATCH, INTERACTIVE = ServiceClass.BATCH, ServiceClass.INTERACTIVE


def ticket(tenant="a", *, tokens=10, service_class=INTERACTIVE, deadline=1000.0, at=0.0, num_output=5):
    return Ticket(
        tenant=tenant,
        service_class=service_class,
        tokens=tokens,
        num_output=num_output,
        num_sequences=1,
        deadline=deadline,
        arrived_at=at,
    )


def queue_of(*tickets, **limits):
    queue = AdmissionQueue(QueueLimits(fair_quantum_tokens=10, **limits))
    for each in tickets:
        assert queue.push(each, each.arrived_at) == []
    return queue


def turn(queue, now=0.0):
    """Give the next ticket its turn."""
    head, dropped = queue.next(now)
    assert dropped == []
    if head is not None:
        queue.start(head, now)
    queue.check()
    return head


def paced(tokens_per_s, **limits):
    """Return a queue that has drained at a pace so far, and its time."""
    queue = AdmissionQueue(QueueLimits(fair_quantum_tokens=10, **limits))
    for step in range(21):
        one = ticket("past", tokens=tokens_per_s // 10, at=step / 10)
        queue.push(one, step / 10)
        head, _ = queue.next((step + 1) / 10)
        queue.start(head, (step + 1) / 10)
        queue.end(head, (step + 1) / 10, Spent(tokens=head.tokens))
    return queue, 2.1


def refusal(queue, asked, now=0.0):
    with pytest.raises(Overloaded) as caught:
        queue.refuse_hopeless(asked, now)
    return caught.value


def test_interactive_goes_before_batch_of_whatever_tenant():
    jobs, person = ticket("a", service_class=BATCH), ticket("b")
    queue = queue_of(jobs, person)
    assert [turn(queue), turn(queue), turn(queue)] == [person, jobs, None]


def test_batch_has_its_share_of_the_turns_while_interactive_requests_flood():
    flood = [ticket("a") for _ in range(400)] + [ticket("b", service_class=BATCH) for _ in range(400)]
    queue = queue_of(*flood, batch_share=0.1)
    served = Counter(turn(queue).service_class for _ in range(300))
    assert served[BATCH] == pytest.approx(30, abs=1)


def test_batch_alone_gets_everything_and_saves_nothing_up():
    queue = queue_of(*(ticket("b", service_class=BATCH) for _ in range(100)))
    assert all(turn(queue) for _ in range(100))
    for _ in range(50):
        queue.push(ticket("a"), 0.0)
        queue.push(ticket("b", service_class=BATCH), 0.0)
    assert [turn(queue).service_class for _ in range(8)] == [INTERACTIVE] * 8


def test_full_queue_refuses_and_says_when_there_will_be_room():
    queue, now = paced(1000, max_queued_tokens=500)
    for _ in range(50):
        queue.push(ticket(at=now), now)
    error = refusal(queue, ticket(tokens=200, at=now), now)
    assert error.reason == "queue_full"
    assert error.retry_after_s == pytest.approx(0.2, rel=0.2)
    assert error.metadata == {"limit": "500"}


def test_full_queue_makes_room_for_another_tenant_at_the_cost_of_the_longest():
    flood = [ticket("flood", at=float(number)) for number in range(10)]
    queue = queue_of(*flood, max_queued_tokens=100)
    other = ticket("other", tokens=20)
    queue.refuse_hopeless(other, 10.0)
    dropped = queue.push(other, 10.0)
    assert [each.ticket for each in dropped] == flood[:-3:-1], "the newest first"
    assert {each.error.reason for each in dropped} == {"queue_full"}
    queue.check()
    assert refusal(queue, ticket("flood"), 10.0).reason == "queue_full"


def test_full_queue_gives_batch_up_before_interactive():
    jobs = [ticket("jobs", service_class=BATCH) for _ in range(2)]
    queue = queue_of(*(ticket("people") for _ in range(8)), *jobs, max_queued_tokens=100)
    asked = ticket("people")
    queue.refuse_hopeless(asked, 0.0)
    assert [each.ticket for each in queue.push(asked, 0.0)] == [jobs[-1]]
    assert refusal(queue, ticket("jobs", service_class=BATCH)).reason == "queue_full"


def test_request_larger_than_the_queue_waits_alone():
    large = ticket(tokens=1000)
    queue = queue_of(large, max_queued_tokens=100)
    assert turn(queue) is large


def test_limit_of_a_tenant_is_its_own():
    queue = queue_of(*(ticket("a") for _ in range(5)), tenant_max_queued_tokens=50)
    error = refusal(queue, ticket("a"))
    assert (error.reason, error.metadata) == ("tenant_queue_full", {"limit": "50"})
    queue.refuse_hopeless(ticket("b"), 0.0)


def test_request_that_would_wait_past_its_deadline_is_refused_with_the_time_that_is_missing():
    queue, now = paced(1000)
    for _ in range(500):
        queue.push(ticket(at=now), now)
    assert queue.wait_s(ticket(at=now), now) == pytest.approx(5.0, rel=0.2)
    error = refusal(queue, ticket(deadline=now + 4.0, at=now), now)
    assert error.reason == "deadline_unreachable"
    assert error.retry_after_s == pytest.approx(4.0, rel=0.3), "a request may wait for a quarter of its time"
    queue.refuse_hopeless(ticket(deadline=now + 40.0, at=now), now)
    queue.refuse_hopeless(ticket("other", deadline=now + 4.0, at=now), now)


def test_request_that_would_end_past_its_deadline_is_refused():
    queue, now = paced(1000)
    queue.start(asked := ticket(at=now), now)
    queue.end(asked, now + 10.0, whole(5))
    queue.push(ticket(at=now), now)
    assert refusal(queue, ticket("b", deadline=now + 9.0, num_output=5), now).reason == "deadline_unreachable"
    queue.refuse_hopeless(ticket("b", deadline=now + 9.0, num_output=1), now)


def test_interactive_request_that_would_wait_too_long_is_refused_and_batch_is_not():
    queue, now = paced(1000, max_queue_s=2.0)
    for _ in range(500):
        queue.push(ticket(at=now), now)
    error = refusal(queue, ticket(at=now), now)
    assert error.reason == "queue_too_long"
    assert error.retry_after_s == pytest.approx(3.0, rel=0.3)
    queue.refuse_hopeless(ticket(service_class=BATCH), now)


def test_deadline_that_passes_in_the_queue_is_told():
    mine = ticket(deadline=5.0)
    queue = queue_of(mine, ticket(deadline=50.0))
    assert queue.expire(4.9) == []
    (dropped,) = queue.expire(5.0)
    assert dropped.ticket is mine
    assert isinstance(dropped.error, DeadlineExceeded)
    assert len(queue) == 1
    queue.check()


def test_interactive_request_is_given_up_after_the_longest_wait():
    queue = queue_of(ticket(), ticket(service_class=BATCH), max_queue_s=2.0)
    (dropped,) = queue.expire(2.0)
    assert dropped.ticket.service_class is INTERACTIVE
    assert (type(dropped.error), dropped.error.reason) == (Overloaded, "queue_too_long")


def test_turn_that_comes_too_late_to_end_in_time_goes_to_the_next_one():
    queue = queue_of(late := ticket(deadline=3.0, num_output=5), other := ticket("b"))
    queue.start(done := ticket("c"), 0.0)
    queue.end(done, 2.0, whole(5))
    head, dropped = queue.next(2.0)
    assert head is other
    assert [(each.ticket, each.error.reason) for each in dropped] == [(late, "deadline_unreachable")]


def test_tokens_in_flight_are_limited_in_all_and_by_tenant():
    queue = queue_of(
        *(ticket("a", tokens=30) for _ in range(3)),
        *(ticket("b", tokens=30) for _ in range(3)),
        max_tokens_in_flight=100,
        tenant_max_tokens_in_flight=60,
    )
    served = [turn(queue), turn(queue), turn(queue)]
    assert turn(queue) is None
    queue.end(next(each for each in served if each.tenant == "b"), 0.0, Spent(tokens=30))
    assert turn(queue) is not None


def test_tenant_at_its_limit_in_flight_does_not_stop_others():
    queue = queue_of(*(ticket("a") for _ in range(5)), *(ticket("b") for _ in range(5)), tenant_max_tokens_in_flight=20)
    assert Counter(turn(queue).tenant for _ in range(4)) == {"a": 2, "b": 2}
    assert turn(queue) is None
    queue.push(other := ticket("c"), 0.0)
    assert turn(queue) is other


def test_request_that_is_given_up_frees_its_place():
    queue = queue_of(mine := ticket("a"), ticket("b"))
    queue.withdraw(mine, 0.0)
    queue.withdraw(mine, 0.0)
    assert turn(queue).tenant == "b"
    assert queue.num_tenants == 1


def test_further_tenants_share_one_name():
    queue = queue_of(ticket("a"), ticket("b"), max_tenants=2)
    assert [queue.name_of(each) for each in ("a", "c", "d")] == ["a", OTHERS, OTHERS]
    for _ in range(2):
        queue.end(turn(queue), 0.0, Spent(tokens=1))
    assert (queue.num_tenants, queue.name_of("c")) == (0, "c")


def test_output_is_expected_to_be_as_long_as_it_was_of_late():
    queue = AdmissionQueue(QueueLimits())
    assert queue.expected_output(10) == 10
    for _ in range(100):
        queue.start(one := ticket(), 0.0)
        queue.end(one, 1.0, whole(40))
    assert queue.expected_output(100_000) == pytest.approx(40, abs=2)


OPERATIONS = st.tuples(
    st.sampled_from(["push", "turn", "end", "withdraw", "wait", "expire"]),
    st.sampled_from("abcd"),
    st.sampled_from(ServiceClass),
    st.integers(1, 60),
)


@given(st.lists(OPERATIONS, max_size=60))
def test_counts_agree_whatever_happens(operations):
    queue = AdmissionQueue(
        QueueLimits(fair_quantum_tokens=10, max_queued_tokens=300, max_queue_s=20.0, max_tenants=3, batch_share=0.25)
    )
    now, waiting, running = 0.0, set(), set()
    for operation, tenant, service_class, size in operations:
        if operation == "push":
            asked = ticket(queue.name_of(tenant), tokens=size, service_class=service_class, deadline=now + size, at=now)
            with suppress(Overloaded):
                queue.refuse_hopeless(asked, now)
                waiting.add(asked)
                waiting -= {each.ticket for each in queue.push(asked, now)}
        elif operation == "turn":
            head, dropped = queue.next(now)
            waiting -= {each.ticket for each in dropped}
            if head is not None:
                queue.start(head, now)
                waiting.remove(head)
                running.add(head)
        elif operation == "end" and running:
            one = running.pop()
            queue.end(one, now, Spent(tokens=size, num_output=size, is_whole=bool(size % 2)))
        elif operation == "withdraw" and waiting:
            queue.withdraw(waiting.pop(), now)
        elif operation == "wait":
            now += size / 4
        elif operation == "expire":
            waiting -= {each.ticket for each in queue.expire(now)}
        queue.check()
        assert len(queue) == len(waiting)
        assert queue.num_running == len(running)
        assert queue.num_tenants <= 4
