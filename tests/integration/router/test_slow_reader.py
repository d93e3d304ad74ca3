"""A client that stops reading holds up nobody but itself, costs bounded memory, and loses nothing."""

from __future__ import annotations

import asyncio

import grpc
from octavo.v1 import inference_pb2, inference_pb2_grpc
from octavo_router.journal import Journal
from support.fake_core import expected_tokens
from support.routed_engine import RoutedEngine, routed_engine
from support.router_client import Answer, request

PROMPT, OTHER_PROMPT = [300, 301, 302], [310, 311, 312]
NUM_TOKENS, NUM_OTHER_TOKENS = 3000, 60
MAX_AHEAD = 32
# What of a stream the transport holds itself is bounded too; this makes it small at the client's end.
SMALL_WINDOW = (
    ("grpc.http2.lookahead_bytes", 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


async def until_paused(routed: RoutedEngine, journal: Journal) -> None:
    """Let others run, each to its end, until the stream gets no further."""
    reached = -1
    while reached < journal.num_output_tokens:
        reached = journal.num_output_tokens
        other = await routed.router.generate(OTHER_PROMPT, max_tokens=NUM_OTHER_TOKENS, seed=1)
        assert other.token_ids[0] == expected_tokens(OTHER_PROMPT, NUM_OTHER_TOKENS, 1)
    assert reached < NUM_TOKENS, "the engine runs on although nobody reads"


async def test_slow_readers_pause_alone_and_lose_nothing(new_router, model_directory):
    async with (
        routed_engine(new_router, model_directory, max_ahead_tokens=MAX_AHEAD) as routed,
        grpc.aio.insecure_channel(routed.router.router.bound.address, options=SMALL_WINDOW) as channel,
        asyncio.timeout(60),
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        patient, leaver = (stub.Generate(request(PROMPT, max_tokens=NUM_TOKENS, seed=1)) for _ in range(2))
        answer = Answer()
        while not answer.num_chunks:
            answer.add(await patient.read())
        while not (await leaver.read()).HasField("chunk"):
            pass

        journals = routed.journals()
        for journal in journals:
            await until_paused(routed, journal)
        assert (await routed.load()).num_running == 2, "both keep their places in the engine"

        leaver.cancel()
        await routed.until_load(lambda load: load.num_running == 1)
        while isinstance(response := await patient.read(), inference_pb2.GenerateResponse):
            answer.add(response)
        assert answer.token_ids[0] == expected_tokens(PROMPT, NUM_TOKENS, 1), "reading on, it gets everything"
        assert len(answer.finished) == 1
        await routed.until_load(lambda load: load.pages_in_use == 0)
        assert max(journal.num_output_tokens for journal in journals) == NUM_TOKENS
        assert min(journal.num_output_tokens for journal in journals) < NUM_TOKENS, (
            "nothing more was made for the other"
        )
