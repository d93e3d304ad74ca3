"""A core that hangs in the middle of a step, while the front of its engine goes on."""

from __future__ import annotations

import time

from octavo.v1 import types_pb2
from octavo_engine.core_watch import PATIENCE_S
from support.engine_process import EngineProcess, Gate
from support.link_client import a_submit, open_link


async def test_hanging_core_is_told_within_three_seconds_and_may_come_back(
    gated_engine: EngineProcess, gate: Gate
) -> None:
    async with open_link(gated_engine.stub()) as link:
        await link.submit(a_submit(max_tokens=4))
        gate.let_pass(2)
        await link.until(lambda: len(link.tokens[1, 0]) == 2)
        hung_at = time.monotonic()  # the next step waits at the gate and does not compute

        await link.next("heartbeat", lambda m: m.heartbeat.load.stalled)

        assert time.monotonic() - hung_at < 3
        async with open_link(gated_engine.stub(), "router-2") as newcomer:
            assert newcomer.messages[0].welcome.load.stalled, "nobody new falls for it"
        gate.let_pass(2)
        assert (await link.ended()).reason == types_pb2.FINISH_REASON_LENGTH
        await link.next("heartbeat", lambda m: not m.heartbeat.load.stalled)


async def test_core_that_waits_for_credit_is_not_stalled(gated_engine: EngineProcess, gate: Gate) -> None:
    async with open_link(gated_engine.stub()) as link:
        await link.submit(a_submit(max_tokens=8))
        await link.credit(1, 4)
        gate.let_pass(2)
        await link.until(lambda: len(link.tokens[1, 0]) == 2)  # by now the credit has come, too
        gate.let_pass(100)
        await link.until(lambda: len(link.tokens[1, 0]) == 4)
        paused_at = time.monotonic()

        await link.next("heartbeat", lambda _: time.monotonic() - paused_at > PATIENCE_S + 0.3)

        heartbeats = [m.heartbeat for m in link.messages if m.WhichOneof("message") == "heartbeat"]
        assert heartbeats[-1].num_requests == 1
        assert not any(heartbeat.load.stalled for heartbeat in heartbeats)
