"""What a routing decision costs: hash the prompt's pages, look them up, score the engines. In this process, no gRPC."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Final, cast

from octavo.page_hash import root_hash
from octavo.v1 import engine_pb2, types_pb2
from octavo_router.fleet import Engine, Fleet
from octavo_router.link import EngineLink
from octavo_router.liveness import LinkState
from octavo_router.policy import Weights
from octavo_router.routing import Prompt, Routing

NUM_ENGINES: Final = 8
PAGE_SIZE: Final = 16
_RESIDENT_PROMPTS: Final = 64  # of each engine
_ROUNDS: Final = 200


class _Link:
    """The part of a link that a fleet and a decision look at."""

    state = LinkState.SERVING
    address = "nowhere"

    def __init__(self, info: engine_pb2.EngineInfo) -> None:
        self.info = info

    def ask_snapshot(self) -> None:
        """Nothing to fetch: the pages are set by hand."""


def decision_ms(prompt_len: int) -> dict[str, float]:
    """Return the median time of a decision and of its parts, milliseconds.

    New prompts share nothing; warm ones three quarters of their length with prompts that engines hold, but this router
    never saw; known ones as much with prompts that came here before, as a chat or a system prompt does. The parts are those
    of warm prompts: `hash` hashes all pages, a decision only those that it looks up; `place` hashes the rest, counts a
    prompt at its engine and tells the other routers. Nothing is hashed before.
    """
    randomness = random.Random(prompt_len)  # noqa: S311  # made-up prompts
    fleet, routing, held = _fleet(randomness, prompt_len)
    engine = cast("Engine", fleet.engine("e0"))
    root, page_size = engine.info.page_hash_root, engine.info.model.page_size
    new = [_prompt(randomness, prompt_len, ()) for _ in range(_ROUNDS)]
    warm = [_prompt(randomness, prompt_len, held) for _ in range(_ROUNDS)]
    hashed = [Prompt(ids) for ids in warm]
    for prompt in hashed:
        routing.route(prompt, room=128)
    known = [_prompt(randomness, prompt_len, held) for _ in range(_ROUNDS)]
    for ids in known:
        routing.route(routing.prompt(ids, cache_salt=b""), room=128)
    figures = {
        "new": [_ms(lambda ids=ids: routing.route(routing.prompt(ids, cache_salt=b""), room=128)) for ids in new],
        "warm": [_ms(lambda ids=ids: routing.route(Prompt(ids), room=128)) for ids in warm],
        "known": [_ms(lambda ids=ids: routing.route(routing.prompt(ids, cache_salt=b""), room=128)) for ids in known],
        "hash": [_ms(lambda ids=ids: Prompt(ids).hashes(root, page_size)[:]) for ids in warm],
        "lookup": [_ms(lambda prompt=prompt: _look_up(fleet, prompt, engine)) for prompt in hashed],
        "place": [_placing_ms(routing, engine, Prompt(ids)) for ids in warm],
    }
    return {name: sorted(values)[len(values) // 2] for name, values in figures.items()}


def _fleet(randomness: random.Random, prompt_len: int) -> tuple[Fleet, Routing, list[list[int]]]:
    fleet = Fleet([], router_id="router", model_name="model", tokenizer_revision="t")
    routing = Routing(fleet, weights=Weights(), note=lambda *_: None)
    root = root_hash(model_revision="r", tokenizer_revision="t", page_size=PAGE_SIZE)
    model = types_pb2.ModelInfo(
        name="model", tokenizer_revision="t", max_model_len=32_768, vocab_size=49_152, page_size=PAGE_SIZE
    )
    held: list[list[int]] = []
    for number in range(NUM_ENGINES):
        info = engine_pb2.EngineInfo(
            engine_id=f"e{number}", epoch=1, model=model, num_pages=100_000, page_hash_root=root
        )
        load = engine_pb2.Load(num_running=number, pages_free=100_000, prefill_tokens_per_s=9e3)
        fleet.link_up(cast("EngineLink", _Link(info)), load)
        prompts = [_prompt(randomness, prompt_len, ()) for _ in range(_RESIDENT_PROMPTS)]
        pages = [page for ids in prompts for page in Prompt(ids).hashes(root, PAGE_SIZE)]
        digest = 0
        for page in pages:
            digest ^= page
        fleet.directory.reset(info.engine_id, epoch=1, sequence=0, hashes=pages, digest=digest)
        held += prompts
    return fleet, routing, held


def _prompt(randomness: random.Random, length: int, held: Sequence[Sequence[int]]) -> list[int]:
    prefix = list(randomness.choice(held)[: length * 3 // 4]) if held else []
    return prefix + [randomness.randrange(49_152) for _ in range(length - len(prefix))]


def _look_up(fleet: Fleet, prompt: Prompt, engine: Engine) -> None:
    fleet.directory.match(prompt.reusable(engine.page_hash_root, engine.page_size), 0.0)


def _placing_ms(routing: Routing, engine: Engine, prompt: Prompt) -> float:
    cost = routing.route(prompt, room=128).ranked[0]
    placements = []

    def place() -> None:
        placements.append(routing.place(engine, prompt, cost, stream_id=1))
        routing.settle()

    taken = _ms(place)
    engine.load.ended(placements[0])
    return taken


def _ms(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started_at)
