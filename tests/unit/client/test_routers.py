from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from octavo_client import routers
from octavo_client.routers import Routers


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(routers, "time", clock)
    return clock


@pytest.fixture
async def three(clock: Clock) -> AsyncIterator[Routers]:
    del clock
    opened = Routers(["a:1", "b:1", "c:1"], None)
    yield opened
    await opened.close()


async def test_routers_take_turns(three: Routers) -> None:
    first = [three.next().target for _ in range(3)]
    assert sorted(first) == ["a:1", "b:1", "c:1"]
    assert [three.next().target for _ in range(3)] == first


async def test_lost_router_is_passed_over_for_a_while(three: Routers, clock: Clock) -> None:
    lost = three.next()
    lost.shun()
    assert lost not in [three.next() for _ in range(6)]
    clock.now += 2.0
    assert lost in [three.next() for _ in range(3)]


async def test_router_that_is_lost_again_and_again_is_passed_over_for_longer(three: Routers, clock: Clock) -> None:
    lost = three.next()
    spans = []
    for _ in range(6):
        lost.shun()
        spans.append(lost.shunned_until - clock.now)
        clock.now = lost.shunned_until
    assert spans == [2, 4, 8, 16, 30, 30]
    lost.welcome()
    lost.shun()
    assert lost.shunned_until - clock.now == 2


async def test_of_lost_routers_the_one_lost_first_is_tried_first(three: Routers, clock: Clock) -> None:
    order = [three.next() for _ in range(3)]
    for router in order:
        router.shun()
        clock.now += 0.1
    tried = []
    for _ in range(3):
        tried.append(three.next())
        tried[-1].shun()
    assert tried == order
