from __future__ import annotations

from itertools import islice

import pytest
from chaos.schedule import BLAMELESS, DEATHS, Fault, episodes

ROUND = 5


@pytest.mark.parametrize("seed", range(20))
def test_every_round_brings_every_kind_of_fault_once(seed: int) -> None:
    found = [trouble.fault for episode in islice(episodes(seed), ROUND) for trouble in episode]
    assert sorted(found, key=list(Fault).index) == list(Fault)


@pytest.mark.parametrize("seed", range(20))
def test_one_engine_of_three_is_always_well_and_one_death_an_episode_is_enough(seed: int) -> None:
    for episode in islice(episodes(seed), 10 * ROUND):
        whom = [trouble.engine for trouble in episode]
        assert len(whom) == len(set(whom)), "one trouble each"
        assert sum(engine is not None for engine in whom) <= 2
        assert sum(trouble.fault in DEATHS for trouble in episode) <= 1
        assert sum(trouble.fault in BLAMELESS for trouble in episode) == 1


def test_schedule_is_a_function_of_its_seed() -> None:
    assert list(islice(episodes(3), 20)) == list(islice(episodes(3), 20))
    assert list(islice(episodes(3), 20)) != list(islice(episodes(4), 20))
