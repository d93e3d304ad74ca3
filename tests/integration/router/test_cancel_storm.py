"""Clients that vanish at random moments, over real sockets and with the real scheduler: nothing of them stays."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import grpc
from octavo.v1 import inference_pb2
from support.engine_process import Gate
from support.routed_engine import RoutedEngine, routed_engine
from support.router_client import request

NUM_REQUESTS = 200
NUM_PAGES = 128
NUM_CLIENTS = 16


async def vanish(routed: RoutedEngine, randomness: random.Random) -> str:
    """Ask for something, and leave at a random moment; return how it ended."""
    prompt = [300 + randomness.randrange(3)] * randomness.choice([1, 8, 8, 120])
    message = request(prompt, max_tokens=randomness.randrange(1, 32), n=randomness.choice([1, 1, 3]))
    leaves_by_deadline = randomness.random() < 0.3
    timeout_s = randomness.uniform(0.001, 0.1) if leaves_by_deadline else 60.0
    call = routed.router.inference.Generate(message, timeout=timeout_s)
    for _ in range(randomness.randrange(10)):  # before it was sent, before it was taken, ...
        await asyncio.sleep(0)
    num_messages = 1000 if leaves_by_deadline else randomness.choice([0, 1, 2, 5, 20, 1000, 1000])
    try:
        for _ in range(num_messages):
            if not isinstance(await call.read(), inference_pb2.GenerateResponse):
                break
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass
    call.cancel()
    return (await call.code()).name


async def test_hundreds_of_vanished_clients_leave_nothing_behind(new_router, model_directory):
    randomness = random.Random(5)
    flags = ("--num-pages", str(NUM_PAGES), "--max-sequences", "16", "--max-step-tokens", "64")
    env = {"OCTAVO_FAKE_DEPTH": "2"}
    async with routed_engine(new_router, model_directory, *flags, env=env) as routed:
        outcomes: Counter[str] = Counter()

        async def client(number: int) -> None:
            for _ in range(number, NUM_REQUESTS, NUM_CLIENTS):
                outcomes[await vanish(routed, randomness)] += 1

        async with asyncio.TaskGroup() as clients:
            for number in range(NUM_CLIENTS):
                clients.create_task(client(number))
        async with asyncio.timeout(10):
            await routed.router.until(lambda: routed.router.router.admission.num_in_flight == 0)
            after = await routed.until_load(
                lambda load: not (load.num_running or load.num_waiting or load.pages_in_use)
            )
        assert routed.journals() == []
        assert after.waiting_tokens == 0
        assert after.pages_free + after.pages_cached == NUM_PAGES
        # A deadline that the queue ahead will not let it meet is refused at once.
        assert set(outcomes) <= {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        assert min(outcomes[name] for name in ("OK", "CANCELLED", "DEADLINE_EXCEEDED")) >= 10, outcomes
        answer = await routed.router.generate([300] * 8, max_tokens=5)
        assert len(answer.token_ids[0]) == 5, "it serves as before"


async def test_pages_of_a_vanished_client_are_free_when_the_step_in_flight_is_read(
    new_router, model_directory, tmp_path
):
    gate = Gate(tmp_path / "steps")
    env = {"OCTAVO_FAKE_STEP_GATE": str(gate.path)}
    async with routed_engine(new_router, model_directory, env=env) as routed, asyncio.timeout(20):
        call = routed.router.inference.Generate(request([300] * 160, max_tokens=50, ignore_eos=True))
        gate.let_pass(2)
        while not (await call.read()).HasField("chunk"):
            pass
        await routed.until_load(lambda load: load.step_id == 2 and load.pages_in_use == 11)
        call.cancel()  # in the middle of the third step
        # What the router sends next comes after the cancel; once the engine has it, it has both.
        following = asyncio.create_task(routed.router.generate([301] * 4, max_tokens=1))
        await routed.until_load(lambda load: load.waiting_tokens > 0)
        gate.let_pass(1)
        await routed.until_load(lambda load: load.step_id == 3)
        gate.let_pass(1)
        await following
        load = await routed.load()
        assert load.step_id == 4, "the fourth step was the other request's"
        assert load.pages_in_use == 0
        gate.let_pass(1000)
    gate.close()
