from __future__ import annotations

from types import SimpleNamespace

import pytest
from octavo.page_hash import root_hash
from octavo.v1 import engine_pb2
from octavo_router.directory import Directory
from octavo_router.fair_queue import ServiceClass, Ticket
from octavo_router.gate import Gate, room_of
from octavo_router.load import EngineLoad, LoadReport, PlacementNote
from octavo_router.routing import Prompt

PAGE_SIZE = 4
ROOT = root_hash(model_revision="m", tokenizer_revision="t", page_size=PAGE_SIZE)
NOW = 100.0


class Engine:
    """What a gate reads of an engine."""

    def __init__(self, engine_id="e1", **report):
        self.engine_id = engine_id
        self.info = engine_pb2.EngineInfo(engine_id=engine_id, max_sequences=8)
        self.page_hash_root, self.page_size, self.num_pages = ROOT, PAGE_SIZE, 100
        self.load = EngineLoad()
        self.load.update(LoadReport(**{"num_running": 1, "prefill_tokens_per_s": 1000.0} | report))
        self.is_serving = True


def gate_of(*engines, queue_s=0.1):
    directory = Directory()
    for engine in engines:
        directory.join(engine.engine_id, 1)
    fleet = SimpleNamespace(engines=list(engines), serving=lambda: list(engines), directory=directory)
    return Gate(fleet, queue_s=queue_s, clock=lambda: NOW)


def ticket(tokens=8):
    return Ticket(
        tenant="a",
        service_class=ServiceClass.INTERACTIVE,
        tokens=tokens,
        num_output=4,
        num_sequences=1,
        deadline=1e9,
        arrived_at=NOW,
    )


def test_room_counts_what_was_sent_since_the_report():
    engine = Engine(num_waiting=2, waiting_tokens=50, pages_in_use=10)
    engine.load.place(PlacementNote(engine_id="e1", router_id="r", stream_id=1, tokens=30), NOW)
    room = room_of(engine, NOW)
    assert (room.waiting_tokens, room.num_requests, room.pages_in_use) == (80, 4, 10 + 8)


def test_gate_is_open_while_any_engine_has_room():
    full, free = Engine("full", waiting_tokens=5000), Engine("free")
    assert gate_of(full, free).is_open(ticket(), num_running=2)
    assert not gate_of(full).is_open(ticket(), num_running=1)


def test_gate_closes_with_what_passes_it():
    engine = Engine()
    gate, num_passed = gate_of(engine), 0
    while gate.is_open(ticket(), num_running=num_passed + 1):
        engine.load.place(PlacementNote(engine_id="e1", router_id="r", stream_id=1, tokens=30), NOW)
        num_passed += 1
    assert num_passed == 4, "100 tokens at most wait before the last one"


def test_gate_without_engines_is_closed():
    gate = gate_of()
    assert not gate.has_engines
    assert not gate.is_open(ticket(), num_running=0)
    assert gate.uncached_tokens(Prompt([1, 2, 3])) == 3


def test_prompt_costs_what_the_engine_that_knows_most_of_it_lacks():
    engines = [Engine("e1"), Engine("e2")]
    gate = gate_of(*engines)
    prompt = Prompt(list(range(22)))
    pages = prompt.hashes(ROOT, PAGE_SIZE)
    gate._fleet.directory.predict("e1", pages[:1], NOW)
    gate._fleet.directory.predict("e2", pages[:3], NOW)
    assert gate.uncached_tokens(prompt) == 22 - 3 * PAGE_SIZE


@pytest.mark.parametrize(("num_running", "is_open"), [(1, True), (20, False)])
def test_gate_is_wider_for_a_router_with_a_small_share(num_running, is_open):
    engine = Engine(num_running=5, waiting_tokens=150)
    assert gate_of(engine).is_open(ticket(), num_running=num_running) == is_open
