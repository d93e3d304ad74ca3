"""Real processes in real trouble: clients must see what an undisturbed run gives, and no request may fail.

OCTAVO_CHAOS_SEED=7 pytest -s tests/chaos/test_chaos.py      the same trouble and the same requests again
OCTAVO_CHAOS_MODEL=tiny pytest -s tests/chaos/test_chaos.py  a model in torch instead of arithmetic
OCTAVO_CHAOS_MINUTES=30 pytest -s tests/chaos/test_chaos.py  for longer (make chaos)
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from chaos.fleet import NUM_PAGES, Fleet, Server
from chaos.load import Kind, Load, kinds_of, run_once, undisturbed, with_stop_string
from chaos.schedule import Fault, episodes
from chaos.trouble import bring, engine_trouble
from octavo.v1 import inference_pb2_grpc
from support.router_client import request
from support.stream_record import Failure, StreamRecord, Violation, check_pages, check_stream

MINUTES = float(os.environ.get("OCTAVO_CHAOS_MINUTES", "0"))
SEED = int(os.environ.get("OCTAVO_CHAOS_SEED", "0")) or secrets.randbits(31)
NUM_CLIENTS = 5
GREEDY = Kind("greedy", request(list(range(40, 70)), max_tokens=300, ignore_eos=True, logprobs=True, temperature=0))
THREE = Kind(
    "seeded n=3", request(list(range(70, 99)), max_tokens=200, ignore_eos=True, logprobs=True, temperature=0.9, n=3)
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300 + 120 * MINUTES)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def oracle(fleet: Fleet) -> dict[Kind, StreamRecord]:
    """The undisturbed run of each request."""
    first, second = fleet.inference()
    records = await undisturbed(first, kinds_of(SEED))
    stopped = [stopped for kind, record in records.items() if (stopped := with_stop_string(kind, record))]
    records |= await undisturbed(second, stopped)
    assert not [event for record in records.values() for event in record.events if isinstance(event, Failure)]
    return records


def say(line: str) -> None:
    """Tell how it goes: on the terminal with -s, else with the failure."""
    sys.stdout.write(f"chaos: {line}\n")
    sys.stdout.flush()


async def test_no_trouble_is_seen_by_any_client(fleet: Fleet, oracle: dict[Kind, StreamRecord]) -> None:
    say(f"OCTAVO_CHAOS_SEED={SEED}")
    load = Load(fleet.inference(), oracle, seed=SEED, num_clients=NUM_CLIENTS)
    try:
        until = time.monotonic() + 60 * MINUTES
        met: set[Fault] = set()
        for number, episode in enumerate(episodes(SEED), start=1):
            if met == set(Fault) and time.monotonic() > until:
                break
            say(f"episode {number}: {'; '.join(map(str, episode))}")
            began = time.monotonic()
            await bring(fleet, episode)
            await load.wait_for_current()
            met |= {trouble.fault for trouble in episode}
            say(f"    healed after {time.monotonic() - began:.1f} s; {load.summary()}")
    finally:
        await load.stop()

    say(load.summary())
    assert_none([*load.violations(), *await pages_lost(fleet)], fleet)
    assert any(record.num_moves for _, record in load.records), "nothing happened"


async def test_rolling_restart_of_all_engines_under_load_fails_no_request(
    fleet: Fleet, oracle: dict[Kind, StreamRecord]
) -> None:
    load = Load(fleet.inference(), oracle, seed=SEED, num_clients=NUM_CLIENTS)
    try:
        for engine in fleet.engines.values():
            await engine.busy()
            async with engine_trouble(engine, Fault.DRAIN):
                pass
            await fleet.whole()
    finally:
        await load.stop()
    say(load.summary())
    assert_none([*load.violations(), *await pages_lost(fleet)], fleet)
    assert any(record.num_moves for _, record in load.records), "nothing was handed over"


# With the most that a client waits for its next token, seconds: to notice the fault, and to compute what was lost again.
@pytest.mark.parametrize(
    ("fault", "kind", "most_s"),
    [
        (Fault.CUT, GREEDY, 1.5),
        (Fault.HANG_CORE, THREE, 3.0),
        (Fault.HANG, GREEDY, 3.5),
        (Fault.HALF_OPEN, THREE, 3.5),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_stream_goes_on_elsewhere_in_the_middle_of_a_fault(
    fault: Fault, kind: Kind, most_s: float, fleet: Fleet
) -> None:
    stub = fleet.inference()[0]
    right = await run_once(stub, kind, "undisturbed")
    async with AsyncExitStack() as trouble:

        async def break_home(record: StreamRecord) -> None:
            home = next(engine for engine in fleet.engines.values() if engine.name == record.engine_id)
            await trouble.enter_async_context(engine_trouble(home, fault))

        record = await run_once(stub, kind, fault.name, break_home)
    say(f"{fault.name}, {kind.name}: longest gap {record.longest_gap_s:.2f} s")
    assert_none(check_stream(record, right), fleet)
    assert record.num_moves == 1
    assert record.longest_gap_s < most_s
    await fleet.whole()
    assert_none(await pages_lost(fleet), fleet)


async def test_router_serves_when_there_never_was_a_redis(fleet: Fleet) -> None:
    right = await run_once(fleet.inference()[0], GREEDY, "undisturbed")
    line = fleet.router_line("lonely", redis_url=f"unix://{fleet.directory}/nobody.sock")
    engines = ",".join(engine.address for engine in fleet.engines.values())
    lonely = Server("lonely", [*line, "--engines", engines], fleet.directory)
    try:
        await lonely.start()
        await fleet.sees_all(lonely)
        stub = inference_pb2_grpc.InferenceServiceStub(lonely.channel(lonely.at.address))
        assert_none(check_stream(await run_once(stub, GREEDY, "without_Redis"), right), fleet)
    finally:
        await lonely.kill()


async def pages_lost(fleet: Fleet) -> list[Violation]:
    """Return what is wrong with the engines' pages, now that nothing runs."""
    answers = await fleet.idle()
    assert all(answer.engine.num_pages == NUM_PAGES for answer in answers.values())
    return [
        violation
        for name, answer in answers.items()
        for violation in check_pages(name, answer.load, num_pages=NUM_PAGES)
    ]


def assert_none(violations: list[Violation], fleet: Fleet) -> None:
    report = "\n".join(map(str, violations[:20]))
    assert not violations, f"seed {SEED}: {len(violations)} violations\n{report}\n{fleet.tails()}"
