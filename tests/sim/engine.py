"""A simulated engine: the real scheduler, page pool, page events and load board; only the time that a step takes is made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from octavo.page_hash import root_hash
from octavo.v1 import engine_pb2
from octavo_engine.budget import StepBudget
from octavo_engine.load import LoadBoard
from octavo_engine.outcome import StepOutcome
from octavo_engine.page_events import BATCH_S, ResidentPages
from octavo_engine.pages import PagePool
from octavo_engine.scheduler import Scheduler, SchedulerConfig
from octavo_engine.sequence import Request, Sampled, Sampling, StepPlan
from octavo_router.directory import PageChange
from octavo_router.fleet import load_report
from octavo_router.load import LoadReport, Placement
from sim.clock import VirtualClock

PAGE_SIZE = 16
ROOT = root_hash(model_revision="simulated", tokenizer_revision="simulated", page_size=PAGE_SIZE)
_FIRST_OUTPUT_ID = 1 << 24  # no prompt has such ids


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """Size and speed of an engine. A step takes `floor_s + per_prefill_s * prefill tokens + per_decode_s * decodes`."""

    num_pages: int = 1600
    max_sequences: int = 64
    max_step_tokens: int = 1024
    itl_target_s: float | None = 0.05
    floor_s: float = 0.012
    per_prefill_s: float = 1 / 8000
    per_decode_s: float = 0.00035

    def work_s(self, *, num_prefill: int, num_decodes: int) -> float:
        """Return the seconds that tokens cost, without the floor that every step has."""
        return self.per_prefill_s * num_prefill + self.per_decode_s * num_decodes


class Submission:
    """One request at one engine. The engine fills in what becomes of it, in seconds of the virtual clock."""

    __slots__ = (
        "cached_tokens",
        "deadline",
        "ended_at",
        "first_token_at",
        "max_tokens",
        "on_end",
        "on_first_token",
        "output",
        "placement",
        "prompt",
    )

    def __init__(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        placement: Placement,
        on_first_token: Callable[[], None],
        on_end: Callable[[], None],
        deadline: float | None = None,
    ) -> None:
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.placement = placement
        self.deadline = deadline
        self.on_first_token = on_first_token
        self.on_end = on_end
        self.output: list[int] = []
        self.cached_tokens = 0
        self.first_token_at = 0.0
        self.ended_at = 0.0


class SimulatedEngine:
    """An engine process: takes submissions between steps, runs steps while there is work, tells of pages and load.

    Args:
        engine_id: its name.
        shape: its size and speed.
        clock: virtual time.
        tell_pages: told of each message of page events.
    """

    def __init__(
        self,
        engine_id: str,
        shape: EngineShape,
        clock: VirtualClock,
        *,
        tell_pages: Callable[[PageChange], None],
    ) -> None:
        self.engine_id = engine_id
        self.shape = shape
        self.work_s = 0.0  # of all tokens so far
        self.num_taken = 0
        self.pool = PagePool(num_pages=shape.num_pages, page_size=PAGE_SIZE)
        budget = StepBudget(max_step_tokens=shape.max_step_tokens, itl_target_s=shape.itl_target_s)
        config = SchedulerConfig(max_sequences=shape.max_sequences, max_model_len=1 << 20)
        self.scheduler = Scheduler(config, self.pool, budget)
        self._clock = clock
        self._tell_pages = tell_pages
        self._pages = ResidentPages(epoch=1)
        self._board = LoadBoard()
        self._links: dict[str, int] = {}
        self._inbox: list[Submission] = []
        self._live: dict[int, Submission] = {}
        self._is_stepping = False
        self._will_tell = False
        self._step_id = 0

    @property
    def info(self) -> engine_pb2.EngineInfo:
        """What the engine says of itself in its welcome, as far as routing reads it."""
        info = engine_pb2.EngineInfo(
            engine_id=self.engine_id,
            epoch=1,
            num_pages=self.shape.num_pages,
            max_step_tokens=self.shape.max_step_tokens,
            max_sequences=self.shape.max_sequences,
            page_hash_root=ROOT,
        )
        info.model.page_size = PAGE_SIZE
        info.model.max_model_len = 1 << 20
        return info

    @property
    def load(self) -> LoadReport:
        """The newest load, as a heartbeat carries it."""
        return load_report(self._board.message())

    @property
    def snapshot(self) -> engine_pb2.PageSnapshotResponse:
        """What a router gets that asks for all pages."""
        return self._pages.snapshot()

    def submit(self, submission: Submission) -> None:
        """Take a request; the scheduler gets it when the step in flight is over."""
        self._inbox.append(submission)
        sent = submission.placement
        if sent.router_id not in self._links:
            self._links[sent.router_id] = len(self._links) + 1
            self._board.linked(self._links[sent.router_id], sent.router_id)
        self._board.took(self._links[sent.router_id], sent.router_id, sent.stream_id)
        self._board.sent(sent.tokens)
        if not self._is_stepping:
            self._step()

    def _step(self) -> None:
        for submission in self._inbox:
            self.num_taken += 1
            self._live[self.num_taken] = submission
            request = Request(
                key=self.num_taken,
                prompt=submission.prompt,
                sampling=Sampling(max_tokens=submission.max_tokens),
                arrival_ns=self._clock.now_ns,
                page_hash_root=ROOT,
                expected_cached=len(submission.prompt) - submission.placement.tokens,
                deadline_ns=None if submission.deadline is None else round(submission.deadline * 1e9),
            )
            self.scheduler.add(request, self._clock.now_ns)
        self._inbox.clear()
        plan = self.scheduler.plan(self._clock.now_ns)
        self._is_stepping = plan is not None
        if plan is None:
            self._publish(self.scheduler.drain())
            return
        num_decodes = sum(row.num_tokens == 1 and row.start >= row.sequence.prefill_end for row in plan.rows)
        num_prefill = plan.num_tokens - num_decodes
        work_s = self.shape.work_s(num_prefill=num_prefill, num_decodes=num_decodes)
        self.work_s += work_s
        self._clock.after(self.shape.floor_s + work_s, lambda: self._finish(plan))

    def _finish(self, plan: StepPlan) -> None:
        tokens = [_FIRST_OUTPUT_ID + row.sequence.request.key for row in plan.rows if row.samples]
        sampled = Sampled(token_ids=tokens, logprobs=[0.0] * len(tokens))
        outcome = self.scheduler.commit(plan, sampled, self._clock.now_ns)
        self._publish(outcome)
        for started in outcome.started:
            self._live[started.key].cached_tokens = started.cached_tokens
        for key, token in zip(outcome.keys, outcome.token_ids, strict=True):
            submission = self._live[key]
            submission.output.append(token)
            if len(submission.output) == 1:
                submission.first_token_at = self._clock.now
                submission.on_first_token()
        for end in outcome.ends:
            submission = self._live.pop(end.key)
            submission.ended_at = self._clock.now
            submission.on_end()
        self._step()

    def _publish(self, outcome: StepOutcome) -> None:
        self._step_id += 1
        report = msgspec.structs.replace(self.scheduler.load(), num_taken=self.num_taken)
        self._board.update(self._step_id, report)
        if outcome.pages_stored or outcome.pages_evicted:
            self._pages.apply(outcome.pages_stored, outcome.pages_evicted)
            if not self._will_tell:
                self._will_tell = True
                self._clock.after(BATCH_S, self._tell)

    def _tell(self) -> None:
        self._will_tell = False
        while (message := self._pages.take_message()) is not None:
            self._tell_pages(
                PageChange(
                    epoch=message.epoch,
                    sequence=message.sequence,
                    stored=tuple(message.stored),
                    evicted=tuple(message.evicted),
                    digest=message.digest,
                    num_resident=message.num_resident,
                )
            )
