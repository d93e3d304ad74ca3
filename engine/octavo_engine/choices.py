"""The sequences of one request that have not ended. Only the scheduler changes it.

The first of them leads: it computes the prompt. The others join the queue when the prompt is computed, and then share
the leader's pages. If the leader cannot go on, they stop waiting for it and compute the prompt themselves.
"""

from __future__ import annotations

from octavo_engine.sequence import Request, Sequence, State


class Choices:
    """A request's unfinished sequences.

    Args:
        request: the request.
        max_len: most tokens of a sequence.

    Attributes:
        request: the request.
        live: sequences that have not ended, in the order of their choices.
        has_started: whether one of them ever ran.
        num_running: how many run now.
    """

    def __init__(self, request: Request, max_len: int) -> None:
        self.request = request
        self.has_started = False
        self.num_running = 0
        committed = dict(enumerate(request.committed))
        max_length = min(max_len, len(request.prompt) + request.sampling.max_tokens)
        self.live = [
            Sequence(
                request=request,
                choice=choice,
                tokens=[*request.prompt, *committed.get(choice, ())],
                max_length=max_length,
                ceiling=max_length,
            )
            for choice in range(request.sampling.n)
            if choice not in request.finished_choices
        ]

    def fork_source(self, sequence: Sequence) -> Sequence | None:
        """Return a running sibling that has computed the whole prompt, if there is one."""
        for other in self.live:
            if other is not sequence and other.state is State.RUNNING and other.num_computed >= other.num_prompt:
                return other
        return None

    def must_wait(self, sequence: Sequence) -> bool:
        """Tell whether a sibling is about to compute the prompt, so that this sequence had better wait for it."""
        leader = self.live[0]
        if sequence is leader or sequence.state is not State.WAITING or leader.is_paused:
            return False
        if leader.state is State.RUNNING:
            return leader.num_computed < leader.num_prompt
        return leader.max_computed < leader.num_prompt
