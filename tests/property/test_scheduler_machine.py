"""Whatever happens, in whatever order: no page is lost, nobody reads another's, and every choice gets its own tokens."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from octavo.errors import InvalidRequest
from octavo_engine.budget import StepBudget
from octavo_engine.outcome import StepOutcome
from octavo_engine.pages import PagePool
from octavo_engine.scheduler import Scheduler, SchedulerConfig
from octavo_engine.sequence import FinishReason, Priority, Request, Sampling, State
from support.paged_model import VOCAB_SIZE, Launched, PagedModel, undisturbed

ROOTS = [b"a" * 16, b"b" * 16]
OWN_ENDS = {FinishReason.STOP, FinishReason.LENGTH}
MILLISECOND = 1_000_000


class Client:
    """One request as its client sees it."""

    def __init__(self, request: Request, max_len: int) -> None:
        sampling = request.sampling
        self.request = request
        self.expected = {choice: undisturbed(request, choice, max_len) for choice in range(sampling.n)}
        self.received = {choice: list(output) for choice, output in enumerate(request.committed)}
        for choice in range(sampling.n):
            self.received.setdefault(choice, [])
        self.open = set(range(sampling.n)) - request.finished_choices
        self.ends: dict[int, int] = {}

    def take_token(self, choice: int, position: int, token_id: int) -> None:
        assert choice in self.open, "a token after the end"
        assert position == len(self.received[choice]), "a token is lost or comes twice"
        self.received[choice].append(token_id)
        assert self.received[choice] == self.expected[choice][0][: position + 1]

    def take_end(self, choice: int, reason: int, *, is_last: bool) -> None:
        self.open.remove(choice)
        self.ends[choice] = reason
        assert is_last == (not self.open)
        if reason in OWN_ENDS:
            assert (self.received[choice], reason) == self.expected[choice]


class SchedulerMachine(RuleBasedStateMachine):
    """Random clients over a small pool, with the pipeline one or more steps deep."""

    clients: dict[int, Client]

    @initialize(
        num_pages=st.integers(2, 14),
        page_size=st.sampled_from([1, 2, 4]),
        depth=st.sampled_from([1, 2, 2, 3]),
        max_sequences=st.integers(1, 6),
        max_step_tokens=st.integers(1, 24),
        watermark=st.sampled_from([0.0, 0.1]),
        prefix_caching=st.sampled_from([True, True, True, False]),
    )
    def start(
        self,
        num_pages: int,
        page_size: int,
        depth: int,
        max_sequences: int,
        max_step_tokens: int,
        watermark: float,
        prefix_caching: bool,
    ) -> None:
        self.pool = PagePool(num_pages=num_pages, page_size=page_size)
        config = SchedulerConfig(
            max_sequences=max_sequences,
            max_model_len=40,
            watermark=watermark,
            batch_allowance_s=0.02,
            prefix_caching=prefix_caching,
        )
        budget = StepBudget(max_step_tokens=max_step_tokens, itl_target_s=0.002, min_chunk=2)
        self.scheduler = Scheduler(config, self.pool, budget)
        self.model = PagedModel(self.pool)
        self.depth = depth
        self.launched: deque[Launched] = deque()
        self.clients = {}
        self.now_ns = 0
        self.mirror: set[int] = set()
        self.before: dict[bytes, bytes] = {}  # hash of each page and of the page before it

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=18),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        max_tokens=st.integers(1, 14),
        min_tokens=st.integers(0, 4),
        stops=st.frozensets(st.integers(0, VOCAB_SIZE - 1), max_size=2),
        seed=st.integers(0, 2),
        batch=st.booleans(),
        timeout_ms=st.sampled_from([None] * 8 + [1, 20]),
        copies=st.sampled_from([1, 1, 2, 4]),
        root=st.sampled_from(ROOTS),
        num_committed=st.sampled_from([0, 0, 0, 1, 3]),
        finished=st.sampled_from([frozenset[int](), frozenset({0}), frozenset({1})]),
    )
    def add_alike(self, copies: int, **request: Any) -> None:
        for _ in range(copies):
            self.add(**request)

    def add(
        self,
        prompt: list[int],
        n: int,
        max_tokens: int,
        min_tokens: int,
        stops: frozenset[int],
        seed: int,
        batch: bool,
        timeout_ms: int | None,
        root: bytes,
        num_committed: int,
        finished: frozenset[int],
    ) -> None:
        def request(committed: tuple[tuple[int, ...], ...], finished_choices: frozenset[int]) -> Request:
            return Request(
                key=len(self.clients) + 1,
                prompt=prompt,
                sampling=Sampling(seed=seed, max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=stops, n=n),
                priority=Priority.BATCH if batch else Priority.INTERACTIVE,
                arrival_ns=self.now_ns,
                deadline_ns=None if timeout_ms is None else self.now_ns + timeout_ms * MILLISECOND,
                page_hash_root=root,
                committed=committed,
                finished_choices=finished_choices,
            )

        if self.pool.pages_for(len(prompt) + 1) > self.pool.num_pages:
            with pytest.raises(InvalidRequest, match="shorten the prompt"):
                self.scheduler.add(request((), frozenset()), self.now_ns)
            return
        outputs = [undisturbed(request((), frozenset()), choice, self.scheduler.max_len) for choice in range(n)]
        finished = finished & set(range(n)) if n > 1 and num_committed else frozenset()
        # A choice that has not ended has been given less than its whole output.
        committed = tuple(
            tuple(output if choice in finished else output[: min(num_committed, len(output) - 1)])
            for choice, (output, _) in enumerate(outputs)
        )
        resumed = request(committed if num_committed else (), finished)
        self.clients[resumed.key] = Client(resumed, self.scheduler.max_len)
        self.scheduler.add(resumed, self.now_ns)

    @rule(which=st.integers(0, 30))
    def cancel(self, which: int) -> None:
        self.scheduler.cancel(which)

    @rule(which=st.integers(0, 30), choices=st.lists(st.integers(0, 3), min_size=1, max_size=2))
    def cancel_choices(self, which: int, choices: list[int]) -> None:
        self.scheduler.cancel(which, choices)

    @rule(which=st.integers(0, 30), credit=st.integers(0, 12))
    def set_credit(self, which: int, credit: int) -> None:
        self.scheduler.set_credit(which, credit)

    @rule()
    def plan(self) -> None:
        if len(self.launched) >= self.depth:
            self.commit()
        self.now_ns += MILLISECOND
        roster = self.scheduler._roster
        oldest = next((sequence for sequence in roster.running if roster.can_run(sequence)), None)
        plan = self.scheduler.plan(self.now_ns)
        assert oldest is None or oldest.state is not State.PREEMPTED, "the oldest must make progress"
        if plan is not None:
            assert plan.num_tokens <= self.scheduler.budget.max_step_tokens
            self.launched.append(self.model.launch(plan))
            for client in self.clients.values():
                deadline = client.request.deadline_ns
                is_late = deadline is not None and deadline <= self.now_ns
                assert not is_late or all(row.sequence.request is not client.request for row in plan.rows)

    @precondition(lambda self: self.launched)
    @rule()
    def commit(self) -> None:
        self.now_ns += MILLISECOND
        launched = self.launched.popleft()
        self.absorb(self.scheduler.commit(launched.plan, launched.sampled, self.now_ns))

    @rule(num_steps=st.integers(2, 12))
    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.plan()
            self.scheduler.check()

    @precondition(lambda self: self.launched and len(self.clients) > 6)
    @rule()
    def fail(self) -> None:
        launched = self.launched.popleft()
        keys = {row.sequence.request.key for row in launched.plan.rows}
        self.absorb(self.scheduler.fail(launched.plan, "step_failed"))
        assert not any(self.clients[key].open for key in keys)

    @rule()
    def flush(self) -> None:
        self.scheduler.flush()
        assert self.pool.num_cached == 0

    @precondition(lambda self: len(self.clients) > 12)
    @rule()
    def hand_off(self) -> None:
        self.scheduler.hand_off()
        self.absorb(self.scheduler.drain())
        assert not any(client.open for client in self.clients.values())

    @rule()
    def drain(self) -> None:
        self.absorb(self.scheduler.drain())

    @invariant()
    def holds_together(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check()
        for launched in self.launched:
            for row in launched.plan.rows:
                assert all(self.pool._ref_counts[page] for page in row.block_table), "a step in flight lost a page"
        self.check_prefixes()
        load = self.scheduler.load()
        assert load.pages_in_use + load.pages_cached + load.pages_free == self.pool.num_pages
        assert load.waiting_tokens >= 0

    def check_prefixes(self) -> None:
        """Assert that no prefix has lost its beginning."""
        for sequence in self.scheduler._roster.running:
            self.before.update((page, before) for before, page in pairwise(sequence.page_hashes))
        cache = self.pool._cache
        for page in cache._page_of:
            assert page not in self.before or cache.page_of(self.before[page]) is not None, "a prefix has a hole"

    def absorb(self, outcome: StepOutcome) -> None:
        columns = (outcome.keys, outcome.choices, outcome.positions, outcome.token_ids, outcome.logprobs)
        for key, choice, position, token_id, logprob in zip(*columns, strict=True):
            assert logprob == -token_id
            self.clients[key].take_token(choice, position, token_id)
        for end in outcome.ends:
            client = self.clients[end.key]
            assert end.output_tokens == len(client.received[end.choice])
            client.take_end(end.choice, end.reason, is_last=end.last)
        assert not self.mirror & set(outcome.pages_stored)
        self.mirror |= set(outcome.pages_stored)
        assert self.mirror >= set(outcome.pages_evicted)
        self.mirror -= set(outcome.pages_evicted)
        digest = 0
        for short in self.mirror:
            digest ^= short
        assert (digest, len(self.mirror)) == (self.pool.digest, self.pool.num_resident)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for key in self.clients:
            self.scheduler.set_credit(key, 1000)
        for _ in range(3000):
            if not self.scheduler.num_requests:
                break
            num_launched = len(self.launched)
            self.plan()
            self.scheduler.check()
            if len(self.launched) == num_launched or num_launched == self.depth:
                assert self.launched or not self.scheduler.num_requests, "nothing runs although requests wait"
                if self.launched:
                    self.commit()
        assert not self.scheduler.num_requests, "requests go round for ever"
        while self.launched:
            self.commit()
        self.absorb(self.scheduler.drain())
        assert all(not client.open for client in self.clients.values())
        assert self.pool.num_in_use == 0
        assert self.scheduler.load().waiting_tokens == 0
        assert self.scheduler.load().num_waiting == 0


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    num_pages=st.integers(5, 12),
    depth=st.integers(1, 3),
    max_step_tokens=st.sampled_from([4, 12, 40]),
    prefix_caching=st.booleans(),
    crowd=st.lists(
        st.fixed_dictionaries(
            {
                "prompt": st.lists(st.integers(0, 1), min_size=1, max_size=12),
                "n": st.sampled_from([1, 1, 2]),
                "max_tokens": st.integers(1, 20),
                "min_tokens": st.just(0),
                "stops": st.sampled_from([frozenset[int](), frozenset({0})]),
                "seed": st.integers(0, 9),
                "batch": st.booleans(),
                "timeout_ms": st.none(),
                "root": st.just(ROOTS[0]),
                "num_committed": st.just(0),
                "finished": st.just(frozenset[int]()),
            }
        ),
        min_size=4,
        max_size=20,
    ),
)
def test_everyone_in_a_crowd_finishes_with_the_tokens_of_being_alone(
    num_pages: int, depth: int, max_step_tokens: int, prefix_caching: bool, crowd: list[dict[str, Any]]
) -> None:
    machine = SchedulerMachine()
    machine.start(
        num_pages=num_pages,
        page_size=4,
        depth=depth,
        max_sequences=6,
        max_step_tokens=max_step_tokens,
        watermark=0.0,
        prefix_caching=prefix_caching,
    )
    for request in crowd:
        machine.add(**request)
    machine.teardown()
    assert all(set(client.ends.values()) <= OWN_ENDS for client in machine.clients.values())


class TestScheduler(SchedulerMachine.TestCase):  # type: ignore[name-defined,misc]
    settings: ClassVar = settings(
        max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
