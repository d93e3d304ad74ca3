"""A scheduler with a client and a runner that tests can steer by hand."""

from __future__ import annotations

from octavo_engine.budget import StepBudget
from octavo_engine.outcome import StepOutcome
from octavo_engine.pages import PagePool
from octavo_engine.scheduler import Scheduler, SchedulerConfig
from octavo_engine.sequence import FinishReason, Priority, Request, Sampled, Sampling, StepPlan

MILLISECOND = 1_000_000
SECOND = 1_000_000_000


class Steered:
    """Pages of 4 tokens, one millisecond a call, token 9 unless a test says otherwise."""

    def __init__(
        self,
        *,
        num_pages: int = 16,
        page_size: int = 4,
        max_sequences: int = 8,
        max_model_len: int = 1000,
        max_step_tokens: int = 64,
        watermark: float = 0.0,
        batch_allowance_s: float = 10.0,
        prefix_caching: bool = True,
    ) -> None:
        self.pool = PagePool(num_pages=num_pages, page_size=page_size)
        self.budget = StepBudget(max_step_tokens=max_step_tokens, min_chunk=1)
        config = SchedulerConfig(
            max_sequences=max_sequences,
            max_model_len=max_model_len,
            watermark=watermark,
            batch_allowance_s=batch_allowance_s,
            prefix_caching=prefix_caching,
        )
        self.scheduler = Scheduler(config, self.pool, self.budget)
        self.now_ns = 0

    def add(
        self,
        key: int,
        prompt: list[int] | int,
        *,
        max_tokens: int = 100,
        min_tokens: int = 0,
        stop_token_ids: frozenset[int] = frozenset(),
        n: int = 1,
        priority: Priority = Priority.INTERACTIVE,
        timeout_ns: int | None = None,
        committed: tuple[tuple[int, ...], ...] = (),
        finished_choices: frozenset[int] = frozenset(),
    ) -> None:
        """Add a request; a prompt given as a number has so many tokens, all different from other requests'."""
        if isinstance(prompt, int):
            prompt = list(range(1000 * key, 1000 * key + prompt))
        self.now_ns += MILLISECOND
        self.scheduler.add(
            Request(
                key=key,
                prompt=prompt,
                sampling=Sampling(max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=stop_token_ids, n=n),
                priority=priority,
                arrival_ns=self.now_ns,
                deadline_ns=None if timeout_ns is None else self.now_ns + timeout_ns,
                page_hash_root=b"root",
                committed=committed,
                finished_choices=finished_choices,
            ),
            self.now_ns,
        )
        self.scheduler.check()

    def plan(self) -> StepPlan:
        """Plan a step, which must not be empty."""
        plan = self.plan_or_none()
        assert plan is not None, "nothing to compute"
        return plan

    def plan_or_none(self) -> StepPlan | None:
        """Plan a step."""
        self.now_ns += MILLISECOND
        plan = self.scheduler.plan(self.now_ns)
        self.scheduler.check()
        return plan

    def commit(self, plan: StepPlan, *token_ids: int) -> StepOutcome:
        """Commit a step; without tokens, each row that samples gets token 9."""
        self.now_ns += MILLISECOND
        tokens = list(token_ids) or [9 for row in plan.rows if row.samples]
        outcome = self.scheduler.commit(plan, Sampled(token_ids=tokens, logprobs=[-1.0 for _ in tokens]), self.now_ns)
        self.scheduler.check()
        return outcome

    def step(self, *token_ids: int) -> StepOutcome:
        """Plan and commit a step."""
        return self.commit(self.plan(), *token_ids)


def rows(plan: StepPlan) -> list[tuple[int, int, int]]:
    """Return (key, start, number of tokens) of each row."""
    return [(row.sequence.request.key, row.start, row.num_tokens) for row in plan.rows]


def ends(outcome: StepOutcome) -> list[tuple[int, int, str]]:
    """Return (key, choice, reason) of each end."""
    return [(end.key, end.choice, FinishReason(end.reason).name) for end in outcome.ends]
