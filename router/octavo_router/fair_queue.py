"""Shares turns out fairly among tenants, in tokens. Pure logic: no clock of its own, no IO, one thread.

Deficit round robin (Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1995): tenants with
something to do stand in a ring. The one in front gets a quantum of tokens and goes on until its next request costs more
than it has left; then it stands at the end. Costs are estimates, so that they are put right when a request has ended:
who used more than was thought has a debt, and pays it before its next turn. A tenant alone pays at once: rounds that
nobody else takes part in cost nothing.
"""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

_DEBT_TTL_S: Final = 30.0  # a debt is to those who waited beside it: later there are others
_MAX_DEBTS: Final = 1024


class ServiceClass(Enum):
    """What a request may expect. Interactive requests have their turn before batch requests."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Ticket:
    """A request's place in the queue. Each is unique.

    Attributes:
        tenant: whose it is.
        service_class: see there.
        tokens: what it will cost an engine, estimated: prompt tokens to compute and output tokens.
        num_output: output tokens of its longest choice, estimated.
        num_sequences: its choices.
        deadline: when it is of no use any more, in seconds of the caller's clock.
        arrived_at: on the same clock.
    """

    tenant: str
    service_class: ServiceClass
    tokens: int
    num_output: int
    num_sequences: int
    deadline: float
    arrived_at: float


class _Line:
    """Tickets of one tenant in the order of their arrival, and its account."""

    __slots__ = ("deficit", "has_quantum", "num_tokens", "tickets")

    def __init__(self, deficit: float) -> None:
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.num_tokens = 0
        self.deficit = deficit  # tokens that it may take now; below 0 a debt
        self.has_quantum = False  # of this round

    @property
    def head(self) -> Ticket:
        return next(iter(self.tickets))


class FairQueue:
    """Tickets of one class of service.

    Args:
        quantum: tokens that a tenant gets in a round. No tenant waits longer than that for another one's turn to end.
    """

    def __init__(self, quantum: int) -> None:
        assert quantum > 0, f"a quantum of {quantum} never ends a round"
        self._quantum = quantum
        self._ring: OrderedDict[str, _Line] = OrderedDict()  # tenants with tickets; the one whose turn it is in front
        self._debts: OrderedDict[str, tuple[float, float]] = OrderedDict()  # of others: deficit below 0, since when
        self._num_tickets = 0
        self._num_tokens = 0

    def __len__(self) -> int:
        return self._num_tickets

    def __iter__(self) -> Iterator[Ticket]:
        for line in self._ring.values():
            yield from line.tickets

    @property
    def num_tokens(self) -> int:
        """Tokens of all tickets."""
        return self._num_tokens

    @property
    def tenants(self) -> list[str]:
        """Tenants with tickets."""
        return list(self._ring)

    def tokens_of(self, tenant: str) -> int:
        """Return the tokens of a tenant's tickets."""
        line = self._ring.get(tenant)
        return 0 if line is None else line.num_tokens

    def push(self, ticket: Ticket, now: float) -> None:
        """Let a ticket wait behind the others of its tenant."""
        line = self._ring.get(ticket.tenant)
        if line is None:
            debt, since = self._debts.pop(ticket.tenant, (0.0, now))
            line = self._ring[ticket.tenant] = _Line(debt if now - since < _DEBT_TTL_S else 0.0)
        assert ticket not in line.tickets, "a ticket waits twice"
        line.tickets[ticket] = None
        self._count(line, ticket, 1)

    def remove(self, ticket: Ticket, now: float) -> None:
        """Take a ticket out: its request was given up."""
        line = self._ring[ticket.tenant]
        del line.tickets[ticket]
        self._count(line, ticket, -1)
        if not line.tickets:
            del self._ring[ticket.tenant]
            self._remember(ticket.tenant, line.deficit, now)

    def head(self, is_held: Callable[[str], bool] = lambda _tenant: False) -> Ticket | None:
        """Return the ticket whose turn it is; the same one until it is taken or removed.

        Args:
            is_held: tells of a tenant that it may have no turn now, however long its queue.
        """
        ready = {tenant for tenant in self._ring if not is_held(tenant)}
        while ready:
            for _ in range(len(self._ring)):
                tenant, line = next(iter(self._ring.items()))
                if tenant in ready:
                    line.deficit += 0 if line.has_quantum else self._quantum
                    line.has_quantum = True
                    if line.deficit >= line.head.tokens:
                        return line.head
                line.has_quantum = False
                self._ring.move_to_end(tenant)
            self._skip_rounds([self._ring[tenant] for tenant in ready])
        return None

    def take(self, ticket: Ticket, now: float) -> None:
        """Give the ticket that `head` returned its turn."""
        line = self._ring[ticket.tenant]
        assert line.head is ticket, "it is not this ticket's turn"
        line.deficit -= ticket.tokens
        self.remove(ticket, now)

    def settle(self, tenant: str, tokens: int, now: float) -> None:
        """Put an estimate right: `tokens` more than thought were used, or fewer if below 0, for a ticket that was taken."""
        line = self._ring.get(tenant)
        if line is not None:
            line.deficit -= tokens
        else:
            debt, since = self._debts.pop(tenant, (0.0, now))
            self._remember(tenant, (debt if now - since < _DEBT_TTL_S else 0.0) - tokens, now)

    def tokens_before(self, ticket: Ticket) -> float:
        """Estimate the tokens that have their turn before a ticket that would be pushed now."""
        line = self._ring.get(ticket.tenant)
        own, deficit = (0, 0.0) if line is None else (line.num_tokens, line.deficit)
        # While its tenant gets so many tokens, each of the others gets as many, if it has them.
        round_tokens = own + ticket.tokens - min(0.0, deficit)
        others = sum(
            min(float(other.num_tokens), round_tokens)
            for tenant, other in self._ring.items()
            if tenant != ticket.tenant
        )
        return own + others

    def longest(self) -> str | None:
        """Return the tenant with the most tokens waiting."""
        return max(self._ring, key=lambda tenant: self._ring[tenant].num_tokens, default=None)

    def newest(self, tenant: str) -> Ticket:
        """Return the ticket of a tenant that came last."""
        return next(reversed(self._ring[tenant].tickets))

    def check(self) -> None:
        """Assert that lines and counts agree."""
        assert self._num_tickets == sum(len(line.tickets) for line in self._ring.values())
        assert self._num_tokens == sum(line.num_tokens for line in self._ring.values())
        for tenant, line in self._ring.items():
            assert line.tickets, "a tenant without tickets stands in the ring"
            assert line.num_tokens == sum(ticket.tokens for ticket in line.tickets)
            assert all(ticket.tenant == tenant for ticket in line.tickets)
            assert tenant not in self._debts
        assert len(self._debts) <= _MAX_DEBTS
        assert all(debt < 0 for debt, _ in self._debts.values())

    def _skip_rounds(self, lines: list[_Line]) -> None:
        """Let the rounds pass, but the last one, that none of these can do anything with."""
        num_rounds = min((line.head.tokens - line.deficit) // self._quantum for line in lines)
        for line in lines:
            line.deficit += max(0.0, num_rounds) * self._quantum

    def _count(self, line: _Line, ticket: Ticket, sign: int) -> None:
        line.num_tokens += sign * ticket.tokens
        self._num_tokens += sign * ticket.tokens
        self._num_tickets += sign

    def _remember(self, tenant: str, deficit: float, now: float) -> None:
        """Keep the account of a tenant that has nothing to do: a debt for a while, but nothing saved."""
        if deficit < 0:
            self._debts[tenant] = (deficit, now)
            if len(self._debts) > _MAX_DEBTS:
                self._debts.popitem(last=False)
