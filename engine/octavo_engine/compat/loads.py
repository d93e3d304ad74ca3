"""The engine's load in the forms that gateways read: answered to a poll, and pushed beside page events."""

from __future__ import annotations

import time
from typing import Any

from octavo.v1 import engine_pb2
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2

from octavo_engine.compat.step_feed import StepFeed
from octavo_engine.switchboard import Switchboard


class Loads:
    """Reads the load of a serving engine.

    Args:
        switchboard: has the newest load.
        feed: has the rate of output.
        info: facts about the engine.
    """

    def __init__(self, switchboard: Switchboard, feed: StepFeed, info: engine_pb2.EngineInfo) -> None:
        self._switchboard = switchboard
        self._feed = feed
        self._info = info

    def polled(self) -> Any:
        """Return the SchedulerLoad as of now."""
        load, info = self._switchboard.load.message(), self._info
        page_size = info.model.page_size
        return vllm_engine_pb2.SchedulerLoad(
            num_running_reqs=load.num_running,
            num_waiting_reqs=load.num_waiting,
            num_total_reqs=load.num_running + load.num_waiting,
            num_used_tokens=load.pages_in_use * page_size,
            max_total_num_tokens=info.num_pages * page_size,
            token_usage=self._usage(load),
            gen_throughput=self._tokens_per_s(),
            utilization=load.num_running / info.max_sequences,
            max_running_requests=info.max_sequences,
            num_waiting_uncached_tokens=load.waiting_tokens,
        )

    def pushed(self, sample: int, *, load_only: bool) -> Any:
        """Return the EngineLoad as of now.

        Args:
            sample: rises with each record of a stream.
            load_only: whether the batch that carries it has no page events.
        """
        load, info = self._switchboard.load.message(), self._info
        record = common_pb2.EngineLoad(
            running_requests=load.num_running,
            waiting_requests=load.num_waiting,
            waiting_uncached_tokens=load.waiting_tokens,
            token_usage=self._usage(load),
            active_token_usage=self._usage(load),
            gen_throughput=self._tokens_per_s(),
            max_running_requests=info.max_sequences,
            sample=sample,
            load_only=load_only,
            num_used_tokens=load.pages_in_use * info.model.page_size,
            max_total_num_tokens=info.num_pages * info.model.page_size,
            engine_reports_steps=True,
            prefill_pending_tokens=load.waiting_tokens,
        )
        if len(self._switchboard):
            record.engine_silence_ms = max(0, time.monotonic_ns() - self._switchboard.last_frame_ns) // 1_000_000
        return record

    def _usage(self, load: engine_pb2.Load) -> float:
        return load.pages_in_use / self._info.num_pages

    def _tokens_per_s(self) -> float:
        return self._feed.throughput.tokens_per_s(time.monotonic_ns())
