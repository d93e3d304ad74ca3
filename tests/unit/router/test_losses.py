from __future__ import annotations

import grpc
import pytest
from octavo.errors import Unavailable
from octavo_router.attempt import ENGINE_LEFT, ENGINE_SILENT, AttemptOver, Fate
from octavo_router.losses import Losses


def over(fate: Fate = Fate.LOST, reason: str = "engine_lost") -> AttemptOver:
    return AttemptOver(fate, Unavailable(reason, "try again", retry_after_s=1.0))


def verdicts(*losses: tuple[AttemptOver, int], max_losses: int = 2) -> list[str | None]:
    """Return the reason that ends the request, if any, after each loss at a number of output tokens."""
    told = Losses(max_losses)
    errors = [told.note(*loss) for loss in losses]
    return [None if error is None else error.reason for error in errors]


@pytest.mark.parametrize("fate", [Fate.LOST, Fate.FAILED])
@pytest.mark.parametrize("position", [0, 7])
def test_request_whose_second_engine_dies_at_the_same_place_is_quarantined(fate: Fate, position: int) -> None:
    assert verdicts((over(fate), position), (over(fate), position), max_losses=16) == [None, "request_quarantined"]


def test_quarantine_does_not_invite_to_try_again() -> None:
    losses = Losses(16)
    losses.note(over(), 3)
    error = losses.note(over(), 3)
    assert error is not None
    assert (error.code, error.retry_after_s) == (grpc.StatusCode.INTERNAL, None)


def test_request_that_went_on_meanwhile_is_merely_unlucky_up_to_the_limit() -> None:
    assert verdicts((over(), 3), (over(), 4), (over(), 9)) == [None, None, "engine_lost"]


@pytest.mark.parametrize("reason", [ENGINE_SILENT, ENGINE_LEFT])
def test_silence_and_orderly_ends_accuse_nobody(reason: str) -> None:
    silent = over(reason=reason)
    assert verdicts((silent, 3), (silent, 3)) == [None, None]
    assert verdicts((over(), 3), (silent, 3)) == [None, None]


def test_silence_in_between_does_not_acquit() -> None:
    assert verdicts((over(), 3), (over(reason=ENGINE_SILENT), 3), (over(), 3), max_losses=16)[-1] is not None


def test_silence_counts_as_a_lost_engine() -> None:
    silent = over(reason=ENGINE_SILENT)
    assert verdicts((silent, 1), (silent, 2), (silent, 3)) == [None, None, ENGINE_SILENT]


@pytest.mark.parametrize("fate", [Fate.HANDED_OFF, Fate.REFUSED])
def test_handovers_and_refusals_cost_nothing(fate: Fate) -> None:
    assert verdicts(*[(over(fate), 0)] * 20) == [None] * 20
