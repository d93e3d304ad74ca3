from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo_router.fair_queue import FairQueue, ServiceClass, Ticket

QUANTUM = 10


def ticket(tenant, tokens=10):
    return Ticket(
        tenant=tenant,
        service_class=ServiceClass.INTERACTIVE,
        tokens=tokens,
        num_output=1,
        num_sequences=1,
        deadline=1e9,
        arrived_at=0.0,
    )


def queue_of(*tickets, quantum=QUANTUM):
    queue = FairQueue(quantum)
    for each in tickets:
        queue.push(each, 0.0)
    return queue


def take(queue, now=0.0):
    """Give the next ticket its turn."""
    head = queue.head()
    assert queue.head() is head, "asking changes nothing"
    if head is not None:
        queue.take(head, now)
    queue.check()
    return head


def served(queue, num_tokens):
    """Return the tokens that each tenant gets of the next so many."""
    tokens = Counter()
    while queue and tokens.total() < num_tokens:
        head = take(queue)
        tokens[head.tenant] += head.tokens
    return tokens


def test_requests_of_one_tenant_keep_their_order():
    tickets = [ticket("a", tokens) for tokens in (30, 1, 200)]
    queue = queue_of(*tickets)
    assert [take(queue), take(queue), take(queue)] == tickets
    assert take(queue) is None


def test_tenant_alone_never_waits_for_its_quantum():
    queue = queue_of(ticket("a", 1_000_000))
    assert take(queue).tokens == 1_000_000


@pytest.mark.parametrize(("small", "large"), [(5, 5), (1, 50), (7, 13)])
def test_tenants_share_tokens_evenly_whatever_the_size_and_number_of_their_requests(small, large):
    queue = queue_of(*(ticket("a", small) for _ in range(3000)), *(ticket("b", large) for _ in range(300)))
    tokens = served(queue, 2000)
    assert abs(tokens["a"] - tokens["b"]) <= QUANTUM + large


def test_flood_delays_another_tenant_by_no_more_than_a_quantum():
    for flood in (10, 100_000):
        queue = queue_of(*(ticket("flood", 5) for _ in range(flood // 5)))
        served(queue, 25)
        one = ticket("one", 10)
        queue.push(one, 0.0)
        before = 0
        while (head := take(queue)) is not one:
            before += head.tokens
        assert before <= QUANTUM


def test_tenant_that_used_more_than_thought_pays_before_its_next_turn():
    queue = queue_of(*(ticket("a") for _ in range(100)), *(ticket("b") for _ in range(100)))
    served(queue, 200)
    queue.settle("a", 100, 0.0)
    tokens = served(queue, 400)
    assert 90 <= tokens["b"] - tokens["a"] <= 110


def test_tenant_that_used_less_than_thought_gets_it_back():
    queue = queue_of(*(ticket("a") for _ in range(100)), *(ticket("b") for _ in range(100)))
    queue.settle("a", -100, 0.0)
    tokens = served(queue, 400)
    assert 90 <= tokens["a"] - tokens["b"] <= 110


def test_debt_outlives_an_empty_line_but_not_for_long():
    for returns_at, is_first in ((1.0, False), (100.0, True)):
        queue = FairQueue(QUANTUM)
        queue.settle("a", 25, 0.0)
        mine, other = ticket("a"), ticket("b")
        queue.push(mine, returns_at)
        queue.push(other, returns_at)
        assert (take(queue, returns_at) is mine) == is_first


def test_nothing_is_saved_up_while_idle():
    queue = queue_of(ticket("a", 1))
    take(queue)
    queue.settle("a", -1000, 0.0)
    for _ in range(100):
        queue.push(ticket("a"), 0.0)
        queue.push(ticket("b"), 0.0)
    tokens = served(queue, 200)
    assert abs(tokens["a"] - tokens["b"]) <= QUANTUM


def test_tenant_that_is_held_has_no_turn_and_gains_nothing_by_it():
    queue = queue_of(*(ticket("a") for _ in range(50)), *(ticket("b") for _ in range(50)))
    for _ in range(20):
        head = queue.head(lambda tenant: tenant == "a")
        assert head.tenant == "b"
        queue.take(head, 0.0)
    tokens = served(queue, 200)
    assert abs(tokens["a"] - tokens["b"]) <= QUANTUM
    assert queue.head(lambda _tenant: True) is None


def test_ticket_that_is_removed_leaves_nothing_behind():
    mine = ticket("a")
    queue = queue_of(mine, ticket("b"))
    queue.remove(mine, 0.0)
    assert queue.tenants == ["b"]
    assert take(queue).tenant == "b"
    assert (len(queue), queue.num_tokens) == (0, 0)


def test_debts_of_endless_tenants_are_not_kept():
    queue = FairQueue(QUANTUM)
    for number in range(5000):
        queue.settle(f"tenant-{number}", 1, 0.0)
    queue.check()


def test_estimate_of_what_comes_first_holds():
    queue = queue_of(*(ticket("a") for _ in range(20)), *(ticket("b") for _ in range(3)))
    mine = ticket("c", 50)
    expected = queue.tokens_before(mine)
    queue.push(mine, 0.0)
    before = 0
    while (head := take(queue)) is not mine:
        before += head.tokens
    assert abs(before - expected) <= 2 * QUANTUM


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "take", "remove", "settle"]), st.sampled_from("abc"), st.integers(1, 40)),
        max_size=80,
    )
)
def test_counts_agree_and_someone_always_has_a_turn(operations):
    queue, tickets = FairQueue(QUANTUM), []
    for number, (operation, tenant, tokens) in enumerate(operations):
        if operation == "push":
            tickets.append(ticket(tenant, tokens))
            queue.push(tickets[-1], float(number))
        elif operation == "settle":
            queue.settle(tenant, tokens - 20, float(number))
        elif tickets and operation == "remove":
            queue.remove(tickets.pop(tokens % len(tickets)), float(number))
        elif tickets:
            tickets.remove(take(queue, float(number)))
        queue.check()
        assert (queue.head() is None) == (not tickets)
