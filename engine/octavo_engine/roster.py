"""Moves sequences through their lives: waiting, running, preempted, finished. Only the scheduler changes it.

    enrol -> WAITING --admit--> RUNNING --end--> FINISHED
                ^                  |
                '--- PREEMPTED <---'  preempt

Each move is told in the outcome, and leaves pages, slots, queue and counts in order.
"""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from octavo.errors import InvalidRequest

from octavo_engine.budget import StepBudget
from octavo_engine.choices import Choices
from octavo_engine.deadlines import Deadlines
from octavo_engine.messages import LoadReport, PreemptedEvent, StartedEvent
from octavo_engine.outcome import StepOutcome, end_event
from octavo_engine.pages import PagePool
from octavo_engine.prefix import Claim, claim_by_fork, claim_by_match, publish_pages, reusable_hashes
from octavo_engine.prefix_work import PrefixWork
from octavo_engine.running import RunningSet
from octavo_engine.sequence import FinishReason, Request, Sequence, State
from octavo_engine.waiting import WaitingQueue

_ASSUMED_PREFILL_TOKENS_PER_S = 10_000.0  # until it has been measured


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits and habits of a scheduler.

    Attributes:
        max_sequences: most sequences that run at once.
        max_model_len: most tokens of a sequence, prompt and output. The pool's size is a limit too.
        watermark: share of the pages that admission leaves available while others run, for their growth.
        batch_allowance_s: a BATCH request counts as if it had arrived so much later.
        prefix_caching: whether pages are reused between requests.
    """

    max_sequences: int
    max_model_len: int
    watermark: float = 0.03
    batch_allowance_s: float = 10.0
    prefix_caching: bool = True


class Roster:
    """Every request that has not ended, and where its sequences are.

    Args:
        config: limits and habits.
        pool: pages.
        budget: knows how long prefills take.
    """

    def __init__(self, config: SchedulerConfig, pool: PagePool, budget: StepBudget) -> None:
        self.config = config
        self.pool = pool
        self.budget = budget
        self.max_len = min(config.max_model_len, pool.num_pages * pool.page_size)
        self.outcome = StepOutcome()
        allowance_ns = round(config.batch_allowance_s * 1e9)
        # Decodes never take the whole step, so a prefill can always go on beside them.
        num_slots = min(config.max_sequences, max(1, budget.max_step_tokens - budget.min_chunk))
        self.running = RunningSet(pool, num_slots=num_slots, allowance_ns=allowance_ns)
        self.waiting = WaitingQueue(allowance_ns=allowance_ns)
        self._prefix_work = PrefixWork()
        self._requests: dict[int, Choices] = {}
        self._num_idle_requests = 0
        self._deadlines = Deadlines()
        self._last_victim: Sequence | None = None

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    @property
    def next_deadline_ns(self) -> int | None:
        """The earliest deadline of a request that has not ended."""
        return self._deadlines.next_ns(self._requests)

    def enrol(self, request: Request) -> None:
        """Take a request.

        Raises:
            InvalidRequest: its prompt can never fit, or it leaves nothing to generate.
        """
        assert request.key not in self._requests, f"key {request.key} is used twice"
        self._refuse_impossible(request)
        choices = Choices(request, self.max_len)
        self._requests[request.key] = choices
        self._num_idle_requests += 1
        if request.deadline_ns is not None:
            self._deadlines.add(request.deadline_ns, request.key, self._requests, len(self._requests))
        for sequence in list(choices.live):
            if self.is_full(sequence):
                self.end(sequence, FinishReason.LENGTH)
        self.queue_ready(choices)

    def defer(self, sequence: Sequence) -> bool:
        """Let a waiting sequence leave the queue until a prefix is there that one ahead of it is computing.

        False, and no change, if there is none, or if the sequence would have more to compute than it saves. Siblings of
        a running choice need not wait: they share its pages.
        """
        if self.choices_of(sequence).fork_source(sequence) is not None:
            return False
        hashes = self._reusable_hashes(sequence)
        missing = hashes[self.pool.num_resident_prefix(hashes) :]
        num_shared = self._prefix_work.num_in_progress(missing)
        if num_shared == 0 or 2 * num_shared < len(missing):
            return False
        worker = self._prefix_work.worker(missing[num_shared - 1])
        assert worker is not None
        if self.due_ns(worker) > self.waiting.due_ns(sequence):
            return False
        self.waiting.remove(sequence)
        num_own_tokens = sequence.length - (len(hashes) - len(missing) + num_shared) * self.pool.page_size
        self._prefix_work.wait(sequence, missing[num_shared - 1], num_own_tokens)
        return True

    def admit(self, sequence: Sequence, now_ns: int) -> Claim | None:
        """Let a waiting sequence run with the claim returned; None if no slot is free or its tokens do not fit."""
        claim = self._claim(sequence) if self.running.has_free_slot else None
        if claim is None:
            return None
        self.waiting.remove(sequence)
        choices = self.choices_of(sequence)
        if sequence.state is State.WAITING:
            sequence.num_cached = min(claim.num_cached, sequence.num_prompt)
            sequence.max_computed = claim.num_computed
            sequence.first_planned_ns = now_ns
        sequence.num_computed = claim.num_computed
        sequence.prefill_end = sequence.length
        self.running.join(sequence, claim.block_table)
        sequence.num_published = claim.num_published
        if self.config.prefix_caching:
            self._prefix_work.announce(sequence, sequence.page_hashes[claim.num_published :])
        self._num_idle_requests -= choices.num_running == 0
        choices.num_running += 1
        if not choices.has_started:
            choices.has_started = True
            self.outcome.started.append(StartedEvent(sequence.request.key, sequence.num_cached, now_ns))
        return claim

    def publish(self, sequence: Sequence, num_computed: int) -> None:
        """Make a running sequence's full pages below `num_computed` reusable: their content has been read."""
        if self.config.prefix_caching and num_computed >= (sequence.num_published + 1) * self.pool.page_size:
            for page_hash in publish_pages(self.pool, sequence, num_computed):
                self._queue_again(self._prefix_work.finish(page_hash))

    def preempt(self, victim: Sequence, now_ns: int) -> None:
        """Take a running sequence's pages away; what it has computed is computed again later."""
        self._leave(victim)
        self._last_victim = victim
        victim.state = State.PREEMPTED
        victim.num_preemptions += 1
        victim.num_computed = victim.prefill_end = 0
        self.outcome.preempted.append(PreemptedEvent(victim.request.key, victim.choice, now_ns))
        self.queue_ready(self.choices_of(victim))

    def victim(self, protected: Sequence, now_ns: int) -> Sequence:
        """Return the running sequence to preempt, never the protected one."""
        return self.running.victim(protected=protected, last_victim=self._last_victim, now_ns=now_ns)

    def end(
        self, sequence: Sequence, reason: FinishReason, *, stop_token_id: int | None = None, error: str = ""
    ) -> None:
        """End a choice, wherever it is."""
        choices = self.choices_of(sequence)
        if sequence.state is State.RUNNING:
            self._leave(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._prefix_work.leave(sequence)
        sequence.state = State.FINISHED
        choices.live.remove(sequence)
        if not choices.live:
            del self._requests[sequence.request.key]
            self._num_idle_requests -= 1
        end = end_event(sequence, reason, is_last=not choices.live, stop_token_id=stop_token_id, error=error)
        self.outcome.ends.append(end)
        self.queue_ready(choices)

    def end_request(self, key: int, reason: FinishReason, *, choices: Collection[int] = (), error: str = "") -> None:
        """End the choices given of a request, or all if none is given. What is unknown is ignored."""
        found = self._requests.get(key)
        if found is not None:
            for sequence in [each for each in found.live if not choices or each.choice in choices]:
                self.end(sequence, reason, error=error)

    def end_all(self, reason: FinishReason) -> None:
        """End every request."""
        for key in list(self._requests):
            self.end_request(key, reason)

    def expire(self, now_ns: int) -> None:
        """End every request whose deadline has come."""
        for key in self._deadlines.pop_due(now_ns):
            self.end_request(key, FinishReason.DEADLINE)

    def set_credit(self, key: int, max_output_tokens: int) -> None:
        """Let each choice of a request have at most so many output tokens. An unknown request is ignored."""
        choices = self._requests.get(key)
        if choices is not None:
            for sequence in choices.live:
                sequence.credit = max_output_tokens
                sequence.ceiling = min(sequence.max_length, sequence.num_prompt + max_output_tokens)
                if sequence.is_paused:  # others must not wait for what it was computing
                    self._queue_again(self._prefix_work.withdraw(sequence))
            self.queue_ready(choices)

    def queue_ready(self, choices: Choices) -> None:
        """Bring the queue up to date with what the sequences of a request may do now."""
        for sequence in choices.live:
            is_ready = self._is_ready(sequence, choices)
            if is_ready == (sequence in self.waiting):
                continue
            if not is_ready:
                self.waiting.remove(sequence)
                continue
            num_tokens = self._num_tokens_to_prefill(sequence, choices)
            is_fresh = not choices.has_started
            prefill_ns = round(num_tokens * self._ns_per_prefill_token) if is_fresh else 0
            # What others ahead of it will leave is not there yet; its sender knows who they are.
            foreseen = min(num_tokens, max(1, sequence.length - sequence.request.expected_cached))
            self.waiting.push(sequence, is_fresh=is_fresh, num_tokens=foreseen, prefill_ns=prefill_ns)

    def choices_of(self, sequence: Sequence) -> Choices:
        """Return the unfinished sequences of the request that an unfinished sequence belongs to."""
        return self._requests[sequence.request.key]

    def due_ns(self, sequence: Sequence) -> int:
        """Return when a running prefill counts as due, as `WaitingQueue.due_ns` does for waiting sequences."""
        return self.running.due_ns(sequence) + round(sequence.num_prefill_left * self._ns_per_prefill_token)

    def can_run(self, sequence: Sequence) -> bool:
        """Tell whether a running sequence has something to compute: neither paused nor full."""
        return sequence.length < sequence.ceiling

    def is_full(self, sequence: Sequence) -> bool:
        """Tell whether no further output can follow, once the steps in flight are read."""
        return sequence.length >= sequence.max_length

    def load(self) -> LoadReport:
        """Return figures for routers."""
        prefill_left = sum(sequence.num_prefill_left for sequence in self.running)
        return LoadReport(
            num_waiting=self._num_idle_requests,
            waiting_tokens=self.waiting.num_tokens + self._prefix_work.num_tokens + prefill_left,
            num_running=len(self.running),
            pages_in_use=self.pool.num_in_use,
            pages_cached=self.pool.num_cached,
            pages_free=self.pool.num_free,
            prefill_tokens_per_s=self.budget.sustained_prefill_tokens_per_s,
            decode_s_per_sequence=self.budget.decode_s_per_sequence,
        )

    def check(self) -> None:
        """Assert that every sequence is where its state says, and that all counts are right."""
        self.running.check()
        self.waiting.check()
        running = set(self.running)
        self._prefix_work.check(running)
        num_idle = 0
        for choices in self._requests.values():
            assert choices.live, "a request lives on without choices"
            assert choices.num_running == len(running & set(choices.live))
            num_idle += choices.num_running == 0
            for sequence in choices.live:
                is_running = sequence in running
                assert is_running == (sequence.state is State.RUNNING) == (sequence.slot is not None)
                assert is_running or not sequence.block_table
                assert (sequence in self.waiting) == self._is_ready(sequence, choices)
                assert not is_running or sequence.num_computed < sequence.length or self.is_full(sequence)
        assert num_idle == self._num_idle_requests
        assert all(sequence in self.choices_of(sequence).live for sequence in running)

    @property
    def _ns_per_prefill_token(self) -> float:
        return 1e9 / (self.budget.prefill_tokens_per_s or _ASSUMED_PREFILL_TOKENS_PER_S)

    def _claim(self, sequence: Sequence) -> Claim | None:
        reserve = math.ceil(self.config.watermark * self.pool.num_pages) if len(self.running) else 0
        hashes = self._reusable_hashes(sequence)
        source = self.choices_of(sequence).fork_source(sequence)
        num_hit_tokens = self.pool.num_resident_prefix(hashes) * self.pool.page_size
        if source is not None and num_hit_tokens < min(sequence.num_prompt, sequence.length - 1):
            return claim_by_fork(self.pool, sequence, source, reserve)
        return claim_by_match(self.pool, sequence, hashes, reserve)

    def _leave(self, sequence: Sequence) -> None:
        self.running.leave(sequence)
        choices = self.choices_of(sequence)
        choices.num_running -= 1
        self._num_idle_requests += choices.num_running == 0
        self._queue_again(self._prefix_work.withdraw(sequence))

    def _queue_again(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self.queue_ready(self.choices_of(sequence))

    def _is_ready(self, sequence: Sequence, choices: Choices) -> bool:
        return (
            sequence.state in {State.WAITING, State.PREEMPTED}
            and not sequence.is_paused
            and sequence not in self._prefix_work
            and not self.running.is_in_flight(sequence)
            and not choices.must_wait(sequence)
        )

    def _num_tokens_to_prefill(self, sequence: Sequence, choices: Choices) -> int:
        if choices.fork_source(sequence) is not None:
            return sequence.length - min(sequence.num_prompt, sequence.length - 1)
        return sequence.length - self.pool.num_resident_prefix(self._reusable_hashes(sequence)) * self.pool.page_size

    def _reusable_hashes(self, sequence: Sequence) -> list[bytes]:
        return reusable_hashes(sequence, self.pool.page_size) if self.config.prefix_caching else []

    def _refuse_impossible(self, request: Request) -> None:
        if len(request.finished_choices) >= request.sampling.n:
            raise InvalidRequest(
                "nothing_to_generate",
                f"All {request.sampling.n} choices have ended already; resume only a request that has one left.",
                field="committed",
            )
        num_prompt, limit = len(request.prompt), self.pool.num_pages * self.pool.page_size
        if self.pool.pages_for(num_prompt + 1) > self.pool.num_pages:
            raise InvalidRequest(
                "prompt_exceeds_pool",
                f"The prompt has {num_prompt} tokens; this engine's pages hold {limit}, one of them for output: "
                "shorten the prompt or give the engine more pages.",
                field="prompt_token_ids",
            )
