"""Goes on with a generation that another router began, from the output that its client has.

The client's token ids become the journal's, as if this router had delivered them: they run through the detokenizer and
the stop strings once more, in silence, so that text goes on at the very character where it broke off. Sans-IO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import InvalidRequest
from octavo.v1 import inference_pb2, types_pb2

from octavo_router.journal import Ending, Journal
from octavo_router.output import ChoiceOutput, TextMismatch

ENDINGS = {
    types_pb2.FINISH_REASON_STOP: Ending.STOP,
    types_pb2.FINISH_REASON_LENGTH: Ending.LENGTH,
    types_pb2.FINISH_REASON_CANCELLED: Ending.CANCELLED,
    types_pb2.FINISH_REASON_DEADLINE: Ending.DEADLINE,
}
"""Ways in which a choice ends for a client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedChoice:
    """Output of one choice that the client has; `ending` is None if it goes on."""

    token_ids: Sequence[int]
    text_bytes: int
    ending: Ending | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """What the client has, choice by choice, and the fingerprint of the kind of engine that gave it."""

    engine_kind: str
    cached_tokens: int
    choices: Sequence[ResumedChoice]

    @property
    def is_committed(self) -> bool:
        """Whether there is anything that a fresh start would not give again."""
        return any(choice.token_ids or choice.ending for choice in self.choices)

    def restore(self, journal: Journal, outputs: Sequence[ChoiceOutput]) -> None:
        """Bring a new journal, whose limits are set, and its outputs to where the client is.

        Takes time in proportion to the output: do it beside the event loop.

        Raises:
            InvalidRequest: the text that the client says it has is not what its tokens mean.
        """
        journal.cached_tokens = min(self.cached_tokens, len(journal.prompt_token_ids))
        for choice, output, resumed in zip(journal.choices, outputs, self.choices, strict=True):
            choice.token_ids.extend(resumed.token_ids)
            choice.logprobs.extend([0.0] * len(resumed.token_ids))  # the client has them, nobody asks again
            if resumed.ending is not None:
                choice.end(resumed.ending)
                output.close()
                continue
            try:
                output.replay(resumed.text_bytes)
            except TextMismatch as mismatch:
                raise _mismatch(choice.index, str(mismatch)) from None
        journal.num_resumed_tokens = journal.num_output_tokens
        journal.num_attempts = 1  # at the other router, at least
        journal.settle()
        for choice, output in zip(journal.choices, outputs, strict=True):
            if output.has_surplus and choice.ending is None:
                raise _mismatch(choice.index, "the text is longer than what the tokens mean")


def resumption_of(message: inference_pb2.Resume) -> Resumption:
    """Return what a checked message says."""
    return Resumption(
        engine_kind=message.engine_kind,
        cached_tokens=message.cached_tokens,
        choices=[
            ResumedChoice(
                token_ids=choice.token_ids, text_bytes=choice.text_bytes, ending=ENDINGS.get(choice.finish_reason)
            )
            for choice in message.choices
        ],
    )


def _mismatch(index: int, problem: str) -> InvalidRequest:
    return InvalidRequest("resume_mismatch", problem, field=f"resume.choices[{index}].text_bytes")
