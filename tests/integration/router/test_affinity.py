from __future__ import annotations

from octavo.v1 import admin_pb2, engine_pb2, inference_pb2
from support.fake_engine import PAGE_SIZE


def shared_prefix(group: int) -> list[int]:
    return [10 + group] * (8 * PAGE_SIZE)


async def test_requests_go_where_their_prefix_is(new_engine, new_router):
    engines = [await new_engine(f"e{index}") for index in range(3)]
    router = await new_router(*engines)
    homes = {group: (await router.generate(shared_prefix(group))).accepted.engine_id for group in range(6)}
    for turn in range(3):
        for group, home in homes.items():
            answer = await router.generate([*shared_prefix(group), 300 + turn, 301, 302])
            assert answer.accepted.engine_id == home
            assert answer.accepted.matched_pages == 8
            assert answer.finished[0].usage.cached_tokens == 8 * PAGE_SIZE
    assert len(set(homes.values())) > 1, "cold prefixes spread over the engines"


async def test_prediction_brings_siblings_together_before_any_page_event(new_engine, new_router):
    engines = [await new_engine(f"e{index}") for index in range(3)]
    router = await new_router(*engines)
    prompt = shared_prefix(1)
    for engine in engines:
        engine.resident = _Deaf()  # never tells what it holds
    first = await router.generate(prompt)
    second = await router.generate([*prompt, 99])
    assert second.accepted.engine_id == first.accepted.engine_id
    assert second.accepted.matched_pages == 8


class _Deaf(dict):
    def update(self, *_args):
        """Hold nothing."""


async def test_new_router_learns_pages_from_a_snapshot(new_engine, new_router):
    engines = [await new_engine(f"e{index}") for index in range(3)]
    prompt = shared_prefix(2)
    home = (await (await new_router(*engines)).generate(prompt)).accepted.engine_id
    answer = await (await new_router(*engines)).generate([*prompt, 5])
    assert answer.accepted.engine_id == home
    assert answer.accepted.matched_pages == 8


async def test_lost_page_event_is_made_up_by_a_snapshot(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    await engine.send_pages([1, 2, 3], lose=True)
    await engine.send_pages([4])
    await engine.until(lambda: engine.num_snapshots == 2)
    await router.until(lambda: router.router.fleet.directory.num_resident("e1") == 4)
    await engine.send_pages([5], evicted=[1])
    await router.until(lambda: router.router.fleet.directory.match([[5]], 0.0) == {"e1": 1})
    router.router.fleet.directory.check()


async def test_busy_engine_loses_against_a_short_match_elsewhere(new_engine, new_router):
    first, second = await new_engine("e1"), await new_engine("e2")
    router = await new_router(first, second)
    prompt = shared_prefix(3)
    home = (await router.generate(prompt)).accepted.engine_id
    busy, idle = (first, second) if home == "e1" else (second, first)
    busy.load.waiting_tokens = 100_000
    await busy.send_load()
    await router.until(lambda: router.router.fleet.engine(busy.engine_id).load.report.waiting_tokens == 100_000)
    answer = await router.generate([*prompt, 7])
    assert answer.accepted.engine_id == idle.engine_id


async def test_tenants_share_no_pages(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    prompt = shared_prefix(4)
    await router.generate(prompt, metadata=(("x-tenant", "a"),))
    other = await router.generate([*prompt, 5], metadata=(("x-tenant", "b"),))
    same = await router.generate([*prompt, 5], metadata=(("x-tenant", "a"),))
    assert other.accepted.matched_pages == 0
    assert other.finished[0].usage.cached_tokens == 0
    assert same.accepted.matched_pages == 8


async def test_explain_ranks_engines_with_every_term_and_sends_nothing(new_engine, new_router):
    first, second = await new_engine("e1"), await new_engine("e2")
    router = await new_router(first, second)
    prompt = shared_prefix(5)
    home = (await router.generate(prompt)).accepted.engine_id
    message = inference_pb2.Input(tokens=inference_pb2.TokenInput(ids=[*prompt, 1, 2]))
    explained = await router.inference.Explain(inference_pb2.ExplainRequest(input=message))
    assert explained.prompt_tokens == 34
    assert explained.prompt_pages == 8
    assert explained.candidates[0].engine_id == home
    best, other = explained.candidates
    assert (best.matched_pages, other.matched_pages) == (8, 0)
    assert (best.uncached_tokens, other.uncached_tokens) == (2, 34)
    for cost in explained.candidates:
        assert cost.cost_s == cost.prefill_s + cost.pool_s + cost.decode_s
    assert len(first.submits) + len(second.submits) == 1


async def test_admin_lists_engines_as_the_router_sees_them(new_engine, new_router):
    first, second = await new_engine("e1"), await new_engine("e2")
    router = await new_router(first, second)
    await router.generate(shared_prefix(6))
    await second.kill()
    await router.serving("e1")
    listed = (await router.admin.ListEngines(admin_pb2.ListEnginesRequest())).engines
    assert [(status.engine.engine_id, status.state) for status in listed] == [
        ("e1", "serving"),
        ("e2", "unreachable"),
    ]
    assert listed[0].address == first.address
    assert listed[0].num_resident_pages == len(first.resident)


async def test_admin_tells_an_engines_whole_load(new_engine, new_router):
    engine = await new_engine("e1")
    router = await new_router(engine)
    load = engine_pb2.Load(
        num_waiting=1, waiting_tokens=2, num_running=3, pages_in_use=4, pages_cached=5, pages_free=600,
        prefill_tokens_per_s=7.0, decode_s_per_sequence=0.5, step_id=9, warming=True,
    )  # fmt: skip
    engine.load.CopyFrom(load)
    await engine.send_load()
    await router.until(lambda: router.router.fleet.engine("e1").load.report.num_running == 3)
    listed = (await router.admin.ListEngines(admin_pb2.ListEnginesRequest())).engines
    assert listed[0].load == load
