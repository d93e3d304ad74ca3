"""Decides what each step computes, and draws the consequences of its results. Pure logic: no clock, no IO, one thread.

    add, cancel, set_credit, hand_off, flush  ->  plan  ->  (the runner runs the step)  ->  commit

`plan` may run ahead of `commit`: it counts a planned step as done, for its number of tokens is known although its
tokens are not. A sequence that turns out to have ended (a stop token) loses what was planned for it meanwhile. Nothing
is published, and no page or slot changes hands, before the results of the steps that touch it have been read.
"""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from octavo_engine.budget import StepBudget
from octavo_engine.draft import Draft, row_of
from octavo_engine.messages import ChunkEvent, LoadReport
from octavo_engine.outcome import StepOutcome
from octavo_engine.pages import PagePool
from octavo_engine.roster import Roster, SchedulerConfig
from octavo_engine.sequence import FinishReason, Request, Row, Sampled, Sequence, State, StepPlan

__all__ = ["Scheduler", "SchedulerConfig"]


@dataclass(frozen=True, slots=True)
class _InFlight:
    plan: StepPlan
    planned_ns: int
    chunks: list[tuple[Sequence, ChunkEvent]]
    num_prefill_tokens: int


class Scheduler:
    """Plans steps over one page pool.

    Args:
        config: limits and habits.
        pool: the pages; nobody else may change it.
        budget: decides about prefill tokens per step, and learns from each step.
    """

    def __init__(self, config: SchedulerConfig, pool: PagePool, budget: StepBudget) -> None:
        self.pool = pool
        self.budget = budget
        self._roster = Roster(config, pool, budget)
        self._in_flight: deque[_InFlight] = deque()
        self._step_id = 0
        self._last_read_ns = 0

    @property
    def max_len(self) -> int:
        """Most tokens of a sequence, prompt and output."""
        return self._roster.max_len

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return self._roster.num_requests

    @property
    def num_in_flight(self) -> int:
        """Plans whose results have not been committed."""
        return len(self._in_flight)

    @property
    def next_deadline_ns(self) -> int | None:
        """When `plan` must be called at the latest, although nothing else happens."""
        return self._roster.next_deadline_ns

    def add(self, request: Request, now_ns: int) -> None:
        """Take a request.

        Raises:
            InvalidRequest: its prompt can never fit, or it leaves nothing to generate.
        """
        self._roster.enrol(request)
        self._roster.expire(now_ns)

    def cancel(self, key: int, choices: Collection[int] = ()) -> None:
        """Give a request up, or only some of its choices. What has ended, or never came, is ignored."""
        self._roster.end_request(key, FinishReason.CANCELLED, choices=choices)

    def set_credit(self, key: int, max_output_tokens: int) -> None:
        """Let each choice of a request have at most so many output tokens. An unknown request is ignored."""
        self._roster.set_credit(key, max_output_tokens)

    def hand_off(self) -> None:
        """End every request with HANDOFF."""
        self._roster.end_all(FinishReason.HANDOFF)

    def flush(self) -> int:
        """Evict every cached page that no sequence holds; return how many."""
        return self.pool.flush()

    def plan(self, now_ns: int) -> StepPlan | None:
        """Return the next step, or None if there is nothing to compute before the next commit or event."""
        self._roster.expire(now_ns)
        draft = Draft()
        self._plan_decodes(draft, now_ns)
        self._plan_prefills(draft, now_ns)
        return self._launch(draft, now_ns) if draft.num_tokens else None

    def commit(self, plan: StepPlan, sampled: Sampled, now_ns: int) -> StepOutcome:
        """Take a step's results, in the order of the plans; return them with all that happened since the last outcome."""
        in_flight = self._take_in_flight(plan)
        self._learn(in_flight, now_ns)
        chunks = [event for sequence, event in in_flight.chunks if sequence.state is not State.FINISHED]
        self._roster.outcome.chunks += chunks
        results = iter(zip(sampled.token_ids, sampled.logprobs, strict=True))
        for row in plan.rows:
            self._commit_row(row, next(results) if row.samples else None, now_ns)
        assert next(results, None) is None, "more tokens than rows that sample"
        self._roster.running.settle()
        return self.drain()

    def fail(self, plan: StepPlan, error: str) -> StepOutcome:
        """End every request of a step that could not be run, in place of `commit`.

        Args:
            plan: the oldest plan that was not committed.
            error: stable reason, as in google.rpc.ErrorInfo.
        """
        self._take_in_flight(plan)
        for row in plan.rows:
            self._roster.end_request(row.sequence.request.key, FinishReason.ERROR, error=error)
        self._roster.running.settle()
        return self.drain()

    def drain(self) -> StepOutcome:
        """Return what happened since the last outcome: after a cancel, or a plan that was None."""
        outcome, self._roster.outcome = self._roster.outcome, StepOutcome()
        pages = self.pool.drain_events()
        outcome.pages_stored, outcome.pages_evicted = pages.stored, pages.evicted
        return outcome

    def load(self) -> LoadReport:
        """Return figures for routers."""
        return self._roster.load()

    def check(self) -> None:
        """Assert every invariant of pages, slots, queue and steps in flight."""
        self._roster.check()
        rows = [row for in_flight in self._in_flight for row in in_flight.plan.rows]
        for sequence in {row.sequence for row in rows} | set(self._roster.running):
            planned = [row for row in rows if row.sequence is sequence]
            assert self._roster.running.is_in_flight(sequence) == bool(planned)
            is_live = sequence.state is not State.FINISHED
            assert not is_live or sequence.num_pending == sum(row.samples for row in planned)

    def _plan_decodes(self, draft: Draft, now_ns: int) -> None:
        """Plan one token for each decoding sequence, the oldest first. The oldest that can run is never preempted."""
        runnable = [sequence for sequence in self._roster.running if sequence.length < sequence.ceiling]
        page_size = self.pool.page_size
        for sequence in runnable:
            if sequence.num_computed < sequence.prefill_end:
                draft.prefills.append(sequence)
            elif sequence.num_computed < len(sequence.block_table) * page_size or self._grows(
                sequence, draft, runnable[0], now_ns
            ):
                draft.num_tokens[sequence] = 1

    def _grows(self, sequence: Sequence, draft: Draft, protected: Sequence, now_ns: int) -> bool:
        """Give a decoding sequence a page for its next token, from a victim if need be; False if it must wait."""
        if sequence.state is not State.RUNNING:  # it was the victim of one before
            return False
        running = self._roster.running
        while self.pool.num_available == 0:
            if running.has_retired or any(map(self._roster.is_full, running)):
                return False  # pages come when the steps in flight are read: nobody must give way
            victim = self._roster.victim(protected, now_ns)
            self._preempt(victim, draft, now_ns)
            if victim is sequence:
                return False
        sequence.block_table += self.pool.take(1)
        return True

    def _plan_prefills(self, draft: Draft, now_ns: int) -> None:
        """Share the prefill room out, in order of dueness, between running prefills and waiting sequences.

        Waiting sequences are admitted strictly in their order: one that does not fit is not overtaken for good.
        """
        roster = self._roster
        room = self.budget.prefill_room(len(draft.num_tokens))
        prefills = [sequence for sequence in draft.prefills if sequence.state is State.RUNNING]
        prefills.sort(key=roster.due_ns, reverse=True)
        admits = not draft.has_preempted
        while room > 0:
            head = roster.waiting.head() if admits else None
            if head is not None and not (prefills and roster.due_ns(prefills[-1]) <= roster.waiting.due_ns(head)):
                if roster.defer(head):
                    continue
                claim = roster.admit(head, now_ns)
                if claim is None:
                    admits = not prefills and self._makes_way(draft, now_ns)
                    continue
                draft.copies += [claim.copy] if claim.copy else []
                sequence = head
            elif prefills:
                sequence = prefills.pop()
            else:
                return
            draft.num_tokens[sequence] = min(sequence.num_prefill_left, room)
            room -= draft.num_tokens[sequence]

    def _makes_way(self, draft: Draft, now_ns: int) -> bool:
        """Preempt a paused sequence if nothing else can run: slow readers must not keep everyone out."""
        if draft.num_tokens or self._in_flight:
            return False
        paused = [sequence for sequence in self._roster.running if sequence.is_paused]
        if paused:
            self._preempt(paused[-1], draft, now_ns)
        return bool(paused)

    def _preempt(self, victim: Sequence, draft: Draft, now_ns: int) -> None:
        draft.num_tokens.pop(victim, None)
        draft.has_preempted = True
        self._roster.preempt(victim, now_ns)

    def _launch(self, draft: Draft, now_ns: int) -> StepPlan:
        """Turn a draft into a plan, and count it as done."""
        self._step_id += 1
        rows: list[Row] = []
        chunks: list[tuple[Sequence, ChunkEvent]] = []
        for sequence, num_tokens in draft.num_tokens.items():
            row = row_of(sequence, num_tokens)
            rows.append(row)
            if row.start < sequence.prefill_end:
                chunks.append((sequence, ChunkEvent(sequence.request.key, sequence.choice, row.start, num_tokens)))
                sequence.num_prefill_steps += 1
            self._count_as_done(sequence, row)
        plan = StepPlan(step_id=self._step_id, rows=tuple(rows), copies=tuple(draft.copies))
        num_prefill_tokens = sum(event.num_tokens for _, event in chunks)
        self._in_flight.append(_InFlight(plan, now_ns, chunks, num_prefill_tokens))
        for sequence, _ in chunks:  # siblings may have waited for this prompt
            self._roster.queue_ready(self._roster.choices_of(sequence))
        return plan

    def _count_as_done(self, sequence: Sequence, row: Row) -> None:
        end = row.start + row.num_tokens
        if row.start < sequence.max_computed:
            sequence.num_recomputed += min(end, sequence.max_computed) - row.start
        sequence.max_computed = max(sequence.max_computed, end)
        sequence.num_computed = end
        sequence.num_pending += row.samples
        sequence.last_step = self._step_id
        sequence.peak_pages = max(sequence.peak_pages, len(row.block_table))

    def _take_in_flight(self, plan: StepPlan) -> _InFlight:
        assert self._in_flight, f"step {plan.step_id} is committed twice"
        in_flight = self._in_flight.popleft()
        assert in_flight.plan is plan, f"step {plan.step_id} is committed before {in_flight.plan.step_id}"
        self._roster.running.note_read(plan.step_id)
        return in_flight

    def _learn(self, in_flight: _InFlight, now_ns: int) -> None:
        """Tell the budget how long the step took: since its plan, or since the step before it was read."""
        seconds = (now_ns - max(in_flight.planned_ns, self._last_read_ns)) / 1e9
        self._last_read_ns = now_ns
        num_prefill_tokens = in_flight.num_prefill_tokens
        num_decodes = in_flight.plan.num_tokens - num_prefill_tokens
        self.budget.observe(seconds, num_prefill_tokens=num_prefill_tokens, num_decodes=num_decodes)

    def _commit_row(self, row: Row, token: tuple[int, float] | None, now_ns: int) -> None:
        sequence = row.sequence
        if sequence.state is State.FINISHED:  # it had ended before this step, unknown to its plan
            return
        if sequence.state is State.RUNNING:
            assert sequence.generation == row.generation, "a sequence was admitted again with a step in flight"
            self._roster.publish(sequence, row.start + row.num_tokens)
        if token is not None:
            self._append(sequence, *token, now_ns)
        if sequence.state is State.PREEMPTED:  # its last token is known now: it may be admitted again
            self._roster.queue_ready(self._roster.choices_of(sequence))

    def _append(self, sequence: Sequence, token_id: int, logprob: float, now_ns: int) -> None:
        """Give a sequence its next token, and end it if that was the last."""
        sequence.tokens.append(token_id)
        sequence.num_pending -= 1
        if sequence.first_token_ns is None:
            sequence.first_token_ns = now_ns
        sequence.last_token_ns = now_ns
        position = len(sequence.tokens) - sequence.num_prompt - 1
        outcome, sampling = self._roster.outcome, sequence.request.sampling
        outcome.keys.append(sequence.request.key)
        outcome.choices.append(sequence.choice)
        outcome.positions.append(position)
        outcome.token_ids.append(token_id)
        outcome.logprobs.append(logprob)
        if token_id in sampling.stop_token_ids and position >= sampling.min_tokens:
            self._roster.end(sequence, FinishReason.STOP, stop_token_id=token_id)
        elif len(sequence.tokens) >= sequence.max_length:
            self._roster.end(sequence, FinishReason.LENGTH)
