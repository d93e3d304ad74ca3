"""Who has a turn, who waits, and who is refused. Pure logic: no clock of its own, no IO, one thread.

    refuse_hopeless  ->  push  ->  next -> start  ->  end
                                   expire: given up with an error

Two fair queues, interactive before batch; batch has a share of the turns even so. What can be known at arrival is said
at arrival: a request that would find the queue full, or would be too late, is refused before it has cost anything.
"""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Final

from octavo.errors import DeadlineExceeded, OctavoError, Overloaded

from octavo_router.fair_queue import FairQueue, ServiceClass, Ticket
from octavo_router.pace import DrainRate, ServiceTime, Spent

OTHERS: Final = "other tenants"  # has a blank, so that no tenant can have this name
_SHORTEST_RETRY_S: Final = 0.1
_LONGEST_RETRY_S: Final = 60.0
_FIRST_RETRY_S: Final = 1.0  # before the pace of the queue is known
# Estimates are off: one that is just in time at arrival is often late in the end, and then all its work was for nothing.
_DEVIATIONS: Final = 2.0
# The queue grows until its wait turns requests away. Were that the wait that the shortest outputs can just bear, only
# those would be served.
_LONGEST_WAIT: Final = 0.25  # of the time to the deadline
_SLACK: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """See the settings of the same names; a limit of 0 is none."""

    max_queued_tokens: int = 1 << 20
    tenant_max_queued_tokens: int = 0
    max_tokens_in_flight: int = 0
    tenant_max_tokens_in_flight: int = 0
    max_queue_s: float = 120.0
    fair_quantum_tokens: int = 1024
    batch_share: float = 0.1
    max_tenants: int = 1024


@dataclass(frozen=True, slots=True)
class Dropped:
    """A ticket that was given up, and what to tell its client."""

    ticket: Ticket
    error: OctavoError


class AdmissionQueue:
    """Everyone who waits for a turn or has one. Times are seconds of the caller's clock."""

    def __init__(self, limits: QueueLimits) -> None:
        self.service_time = ServiceTime()
        self._limits = limits
        self._queues = {each: FairQueue(limits.fair_quantum_tokens) for each in ServiceClass}
        self._rate = DrainRate()
        self._batch_credit = 0.0  # tokens that batch may take before the next interactive turn
        self._started: dict[Ticket, tuple[float, bool]] = {}  # when, and whether it had waited for its turn
        self._in_flight: Counter[str] = Counter()  # tokens by tenant
        self._tokens_in_flight = 0
        self._num_tickets: Counter[str] = Counter()  # by tenant
        self._due: list[tuple[float, int, Ticket]] = []
        self._numbers = count()
        self._waiting: set[Ticket] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def num_queued(self) -> dict[ServiceClass, int]:
        """Tickets that wait, by class."""
        return {each: len(queue) for each, queue in self._queues.items()}

    @property
    def queued_tokens(self) -> dict[ServiceClass, int]:
        """Tokens of the tickets that wait, by class."""
        return {each: queue.num_tokens for each, queue in self._queues.items()}

    @property
    def num_running(self) -> int:
        """Requests that had their turn and have not ended."""
        return len(self._started)

    @property
    def tokens_in_flight(self) -> int:
        """Tokens of the requests that have their turn."""
        return self._tokens_in_flight

    @property
    def num_tenants(self) -> int:
        """Tenants of whom a request waits or runs."""
        return len(self._num_tickets)

    def name_of(self, tenant: str) -> str:
        """Return the name that a tenant's tickets bear: too many tenants share one, and its turns."""
        is_known = tenant in self._num_tickets or len(self._num_tickets) < self._limits.max_tenants
        return tenant if is_known else OTHERS

    def expected_output(self, max_tokens: int) -> int:
        """Estimate the output tokens of a choice that may have so many."""
        return max(1, min(max_tokens, round(self.service_time.mean_output)))

    def wait_s(self, ticket: Ticket, now: float) -> float:
        """Estimate how long a ticket would wait that would be pushed now; 0 if that cannot be known."""
        self._rate.update(now)
        rate = self._rate.tokens_per_s
        return self._tokens_before(ticket) / rate if rate else 0.0

    def refuse_hopeless(self, ticket: Ticket, now: float) -> None:
        """Refuse a request that would have to wait, if it would not fit in or would be too late.

        Raises:
            Overloaded: the queue is full, or too slow for it.
        """
        self._refuse_excess(ticket)
        wait_s, service_s = self.wait_s(ticket, now), self.service_time.seconds_for(ticket.num_output)
        if ticket.service_class is ServiceClass.INTERACTIVE and wait_s > self._limits.max_queue_s:
            raise self._overloaded(
                "queue_too_long",
                f"the request would wait about {wait_s:.1f} s, longer than {self._limits.max_queue_s:g} s; try later",
                wait_s - self._limits.max_queue_s,
            )
        left_s = ticket.deadline - now
        late_s = wait_s - min(_LONGEST_WAIT * left_s, left_s - service_s - _DEVIATIONS * self.service_time.deviation_s)
        if wait_s and late_s > 0:
            raise self._overloaded(
                "deadline_unreachable",
                f"the request would wait about {wait_s:.1f} s and take about {service_s:.1f} s, more than its deadline "
                "leaves; try again later or give it more time",
                late_s,
            )

    def push(self, ticket: Ticket, now: float) -> list[Dropped]:
        """Let a request wait. Whoever has most in a full queue makes room, batch before interactive requests."""
        self._num_tickets[ticket.tenant] += 1
        self._waiting.add(ticket)
        self._queues[ticket.service_class].push(ticket, now)
        self._rate.busy(now)
        heapq.heappush(self._due, (self._drop_at(ticket), next(self._numbers), ticket))
        if len(self._due) > 2 * len(self._waiting) + _SLACK:
            self._due = [entry for entry in self._due if entry[2] in self._waiting]
            heapq.heapify(self._due)
        dropped = []
        while self._num_queued_tokens > self._limits.max_queued_tokens and len(self._waiting) > 1:
            victim = self._victim()
            self.withdraw(victim, now)
            dropped.append(Dropped(victim, self._queue_full(victim.tokens)))
        return dropped

    def withdraw(self, ticket: Ticket, now: float) -> None:
        """Take a waiting request out; one that does not wait is ignored."""
        if ticket in self._waiting:
            self._queues[ticket.service_class].remove(ticket, now)
            self._left_queue(ticket, now)
            self._forget(ticket)

    def expire(self, now: float) -> list[Dropped]:
        """Give up those whose time is over."""
        dropped = []
        while self._due and self._due[0][0] <= now:
            ticket = heapq.heappop(self._due)[2]
            if ticket in self._waiting:
                self.withdraw(ticket, now)
                dropped.append(Dropped(ticket, self._too_late(ticket, now)))
        return dropped

    def next(self, now: float) -> tuple[Ticket | None, list[Dropped]]:
        """Return whose turn it is, and those who had it but could not be ready in time any more."""
        dropped: list[Dropped] = []
        while True:
            ticket = self._head()
            if ticket is None or now + self.service_time.seconds_for(ticket.num_output) <= ticket.deadline:
                return ticket, dropped
            self.withdraw(ticket, now)
            dropped.append(Dropped(ticket, self._too_late(ticket, now)))

    def start(self, ticket: Ticket, now: float) -> None:
        """Give a request its turn: the one that `next` returned, or one that need not wait."""
        has_waited = ticket in self._waiting
        if has_waited:
            self._take(ticket, now)
        else:
            self._num_tickets[ticket.tenant] += 1
        self._started[ticket] = (now, has_waited)
        self._in_flight[ticket.tenant] += ticket.tokens
        self._tokens_in_flight += ticket.tokens

    def end(self, ticket: Ticket, now: float, spent: Spent) -> None:
        """Take note that a request that had its turn is over."""
        started_at, has_waited = self._started.pop(ticket)
        self.service_time.ended(spent, now - started_at)
        if has_waited:  # what nobody waited for is nobody's debt
            self._queues[ticket.service_class].settle(ticket.tenant, spent.tokens - ticket.tokens, now)
        self._tokens_in_flight -= ticket.tokens
        self._in_flight[ticket.tenant] -= ticket.tokens
        if self._in_flight[ticket.tenant] == 0:
            del self._in_flight[ticket.tenant]
        self._forget(ticket)

    def has_turn(self, ticket: Ticket) -> bool:
        """Tell whether a request had its turn and has not ended."""
        return ticket in self._started

    def has_allowance(self, ticket: Ticket) -> bool:
        """Tell whether the limits in flight leave a turn to this request now. One request alone always has it."""
        limit = self._limits.max_tokens_in_flight
        is_free = not limit or not self._started or self._tokens_in_flight + ticket.tokens <= limit
        return is_free and not self._is_held(ticket.tenant)

    def check(self) -> None:
        """Assert that everything that is counted twice agrees."""
        waiting = [ticket for queue in self._queues.values() for ticket in queue]
        assert len(waiting) == len(self._waiting)
        assert set(waiting) == self._waiting
        assert +self._in_flight == self._in_flight
        assert self._tokens_in_flight == self._in_flight.total()
        tenants = Counter(ticket.tenant for ticket in [*waiting, *self._started])
        assert tenants == self._num_tickets
        assert self._waiting <= {entry[2] for entry in self._due}
        for queue in self._queues.values():
            queue.check()

    @property
    def _num_queued_tokens(self) -> int:
        return sum(queue.num_tokens for queue in self._queues.values())

    def _is_held(self, tenant: str) -> bool:
        limit = self._limits.tenant_max_tokens_in_flight
        return bool(limit) and self._in_flight[tenant] >= limit

    def _head(self) -> Ticket | None:
        interactive, batch = (self._queues[each].head(self._is_held) for each in ServiceClass)
        if interactive is None or batch is None:
            ticket = interactive or batch
        else:
            ticket = batch if self._batch_credit >= batch.tokens else interactive
        return ticket if ticket is not None and self.has_allowance(ticket) else None

    def _take(self, ticket: Ticket, now: float) -> None:
        self._rate.took(ticket.tokens, now)
        self._queues[ticket.service_class].take(ticket, now)
        share = self._limits.batch_share
        if not self._queues[ServiceClass.BATCH]:
            self._batch_credit = 0.0
        elif ticket.service_class is ServiceClass.INTERACTIVE:
            self._batch_credit += ticket.tokens * share / (1 - share)
        else:
            self._batch_credit = max(0.0, self._batch_credit - ticket.tokens)
        self._left_queue(ticket, now)

    def _left_queue(self, ticket: Ticket, now: float) -> None:
        self._waiting.remove(ticket)
        if not self._waiting:
            self._rate.idle(now)

    def _forget(self, ticket: Ticket) -> None:
        self._num_tickets[ticket.tenant] -= 1
        if self._num_tickets[ticket.tenant] == 0:
            del self._num_tickets[ticket.tenant]

    def _tokens_before(self, ticket: Ticket) -> float:
        queues, share = self._queues, self._limits.batch_share
        before = queues[ticket.service_class].tokens_before(ticket)
        if ticket.service_class is ServiceClass.INTERACTIVE:
            return before / (1 - share) if queues[ServiceClass.BATCH] else before
        return min(before + queues[ServiceClass.INTERACTIVE].num_tokens, (before + ticket.tokens) / max(share, 1e-9))

    def _refuse_excess(self, ticket: Ticket) -> None:
        queued = sum(queue.tokens_of(ticket.tenant) for queue in self._queues.values())
        limit = self._limits.tenant_max_queued_tokens
        if limit and queued and queued + ticket.tokens > limit:
            raise self._overloaded(
                "tenant_queue_full",
                f"{queued} tokens of this tenant's requests wait here, the limit is {limit}; try again later",
                self._drain_s(queued + ticket.tokens - limit),
                limit=limit,
            )
        excess = self._num_queued_tokens + ticket.tokens - self._limits.max_queued_tokens
        if excess > 0 and self._waiting and not self._displaces(ticket, queued):
            raise self._queue_full(excess)

    def _displaces(self, ticket: Ticket, queued: int) -> bool:
        """Tell whether a full queue has someone who must make room for this request."""
        if ticket.service_class is ServiceClass.INTERACTIVE and self._queues[ServiceClass.BATCH]:
            return True
        queue = self._queues[ticket.service_class]
        longest = queue.longest()
        return longest is not None and queue.tokens_of(longest) > queued + ticket.tokens

    def _victim(self) -> Ticket:
        queue = self._queues[ServiceClass.BATCH] or self._queues[ServiceClass.INTERACTIVE]
        longest = queue.longest()
        assert longest is not None
        return queue.newest(longest)

    def _drop_at(self, ticket: Ticket) -> float:
        if ticket.service_class is ServiceClass.BATCH:
            return ticket.deadline
        return min(ticket.deadline, ticket.arrived_at + self._limits.max_queue_s)

    def _too_late(self, ticket: Ticket, now: float) -> OctavoError:
        waited_s, drain_s = now - ticket.arrived_at, self._drain_s(self._num_queued_tokens)
        if now >= ticket.deadline:
            return DeadlineExceeded(
                "deadline_in_queue", f"the deadline passed while the request waited {waited_s:.1f} s"
            )
        if now >= self._drop_at(ticket):
            return self._overloaded(
                "queue_too_long", f"the request waited {waited_s:.1f} s in vain; try again later", drain_s
            )
        return self._overloaded(
            "deadline_unreachable",
            f"after {waited_s:.1f} s in the queue the deadline leaves too little time; try again later",
            drain_s,
        )

    def _queue_full(self, excess: int) -> Overloaded:
        limit = self._limits.max_queued_tokens
        return self._overloaded(
            "queue_full",
            f"the queue is full: its limit is {limit} tokens; try again later",
            self._drain_s(excess),
            limit=limit,
        )

    def _drain_s(self, tokens: int) -> float | None:
        rate = self._rate.tokens_per_s
        return tokens / rate if rate else None

    def _overloaded(self, reason: str, message: str, retry_s: float | None, *, limit: int | None = None) -> Overloaded:
        """Return the error. It says when to try again: when the queue will have drained so far, at its measured pace."""
        retry_after_s = _FIRST_RETRY_S if retry_s is None else min(max(retry_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        metadata = {} if limit is None else {"limit": str(limit)}
        return Overloaded(reason, message, retry_after_s=retry_after_s, metadata=metadata)
