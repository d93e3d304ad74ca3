"""Ten thousand cancels, each at a random moment of a random request: no page is lost, and none stays longer than a step."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from octavo_engine.budget import StepBudget
from octavo_engine.outcome import StepOutcome
from octavo_engine.pages import PagePool
from octavo_engine.scheduler import Scheduler, SchedulerConfig
from octavo_engine.sequence import FinishReason, Request, Sampled, Sampling, Sequence, State, StepPlan

NUM_CANCELS = 2500  # of each of the four runs
NUM_LIVE = 9
MILLISECOND = 1_000_000
STAGES = {"waiting", "deferred", "prefilling", "decoding", "paused", "preempted", "forked", "in flight"}


class Crowd:
    """Requests that come and are cancelled, over a pool too small for them, one step ahead."""

    def __init__(self, seed: int, depth: int) -> None:
        self.depth = depth
        self.random = random.Random(seed)
        self.pool = PagePool(num_pages=20, page_size=4)
        config = SchedulerConfig(max_sequences=6, max_model_len=60, watermark=0.0, batch_allowance_s=0.01)
        self.scheduler = Scheduler(config, self.pool, StepBudget(max_step_tokens=16, min_chunk=2))
        self.launched: deque[StepPlan] = deque()
        self.stages: Counter[str] = Counter()
        self.ends: Counter[FinishReason] = Counter()
        self.open: dict[int, set[int]] = {}  # choices that have not ended, by key
        self.now_ns = 0
        self._num_added = 0

    def add(self) -> None:
        self._num_added += 1
        n = self.random.choice([1, 1, 1, 3])
        # Some prompts share prefixes, and wait for pages that others compute.
        prefix = [self._num_added // 4] * self.random.choice([4, 20])
        prompt = prefix + [9] * self.random.randrange(8)
        request = Request(
            key=self._num_added,
            prompt=prompt,
            sampling=Sampling(max_tokens=self.random.randrange(1, 30), stop_token_ids=frozenset({0}), n=n),
            arrival_ns=self.now_ns,
            page_hash_root=b"root",
        )
        self.open[request.key] = set(range(n))
        self.scheduler.add(request, self.now_ns)
        if self.random.random() < 0.2:
            self.scheduler.set_credit(request.key, self.random.randrange(4))

    def step(self) -> None:
        """Launch a step, and read the oldest one if the pipeline is full or nothing can be launched."""
        self.now_ns += MILLISECOND
        plan = self.scheduler.plan(self.now_ns)
        if plan is not None:
            self.launched.append(plan)
        if self.launched and (plan is None or len(self.launched) >= self.depth):
            self.read()

    def read(self) -> None:
        """Read the oldest step."""
        plan = self.launched.popleft()
        token_ids = [self.random.randrange(40) for row in plan.rows if row.samples]
        self.absorb(
            self.scheduler.commit(plan, Sampled(token_ids=token_ids, logprobs=[0.0] * len(token_ids)), self.now_ns)
        )

    def absorb(self, outcome: StepOutcome) -> None:
        """Take what clients are told: nothing of a choice that has ended, and each end once."""
        assert all(choice in self.open[key] for key, choice in zip(outcome.keys, outcome.choices, strict=True))
        for end in outcome.ends:
            self.open[end.key].remove(end.choice)
            self.ends[FinishReason(end.reason)] += 1

    def cancel(self, key: int) -> None:
        """Cancel a request, or one of its choices."""
        victims = list(self.scheduler._roster._requests[key].live)
        if len(victims) > 1 and self.random.random() < 0.5:
            victims = [self.random.choice(victims)]
            self.scheduler.cancel(key, [victims[0].choice])
        else:
            self.scheduler.cancel(key)
        self.scheduler.check()
        self.absorb(self.scheduler.drain())
        assert all(victim.state is State.FINISHED and not victim.block_table for victim in victims)
        assert self.pool.num_in_use <= self.num_pages_held + sum(map(len, self._tables_in_flight()))

    def note_stage(self, key: int) -> None:
        roster = self.scheduler._roster
        for sequence in roster._requests[key].live:
            self.stages[self._stage(sequence)] += 1
            self.stages["in flight"] += any(row.sequence is sequence for plan in self.launched for row in plan.rows)
            self.stages["forked"] += sequence.choice > 0 and sequence.state is State.RUNNING

    @property
    def num_pages_held(self) -> int:
        """Pages of running sequences."""
        return len({page for sequence in self.scheduler._roster.running for page in sequence.block_table})

    def _tables_in_flight(self) -> list[tuple[int, ...]]:
        return [row.block_table for plan in self.launched for row in plan.rows]

    def _stage(self, sequence: Sequence) -> str:
        if sequence.state is not State.RUNNING:
            is_deferred = sequence in self.scheduler._roster._prefix_work
            return "deferred" if is_deferred else sequence.state.value
        if sequence.is_paused:
            return "paused"
        return "prefilling" if sequence.num_computed < sequence.prefill_end else "decoding"


@pytest.mark.parametrize(("seed", "depth"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_ten_thousand_random_cancels_lose_no_page(seed, depth):
    crowd = Crowd(seed, depth)
    for number in range(NUM_CANCELS):
        while crowd.scheduler.num_requests < NUM_LIVE:
            crowd.add()
        for _ in range(crowd.random.randrange(3)):
            crowd.step()
        while not crowd.scheduler.num_requests:
            crowd.add()
        key = crowd.random.choice(list(crowd.scheduler._roster._requests))
        crowd.note_stage(key)
        crowd.cancel(key)
        if number % 8 == 0:  # what was in flight at the cancel is read, and nothing else has run
            while crowd.launched:
                crowd.read()
            crowd.scheduler.check()
            assert crowd.pool.num_in_use == crowd.num_pages_held, "pages outlived the step of their cancel"
    while crowd.scheduler.num_requests:
        crowd.cancel(next(iter(crowd.scheduler._roster._requests)))
    while crowd.launched:
        crowd.read()
    crowd.scheduler.check()
    assert crowd.scheduler.num_requests == 0
    assert not any(crowd.open.values()), "a choice was never told its end"
    assert crowd.ends[FinishReason.CANCELLED] >= NUM_CANCELS
    assert crowd.pool.num_in_use == 0
    assert crowd.pool.num_free + crowd.pool.num_cached == crowd.pool.num_pages
    assert {stage for stage in STAGES if crowd.stages[stage] < 5} == set(), (
        f"too few cancels at a stage: {crowd.stages}"
    )
