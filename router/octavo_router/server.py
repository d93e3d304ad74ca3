"""Wires a router process together: starts it, keeps its health and gauges true, drains it, stops it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from octavo.model_directory import resolve_model, served_name
from octavo.process import package_version
from octavo.redis_keys import RedisKeys
from octavo.rpc_errors import ErrorInterceptor
from octavo.serving import MetricsPage, bind, enable_reflection
from octavo.tracing import tracer, tracer_provider
from octavo.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from opentelemetry.sdk.trace.export import SpanExporter

from octavo_router.admin import AdminService
from octavo_router.admission import Admission
from octavo_router.admission_queue import AdmissionQueue, QueueLimits
from octavo_router.bus import RedisBus
from octavo_router.config import RouterConfig
from octavo_router.fleet import Fleet
from octavo_router.gate import Gate
from octavo_router.liveness import LinkState, LinkTimes
from octavo_router.load import PlacementNote
from octavo_router.metrics import RouterMetrics
from octavo_router.policy import Weights
from octavo_router.routing import Routing
from octavo_router.service import InferenceService, ServiceLimits
from octavo_router.tokenizer import Tokenizer, TokenizerThreads
from octavo_router.turns import Turns
from octavo_router.work import DispatchLimits

_log = structlog.get_logger("octavo.router")

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
_GAUGE_PERIOD_S = 1.0
_MESSAGE_SLACK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Addresses that a router serves at."""

    address: str
    admin_address: str
    metrics_address: str


class RouterServer:
    """One router in this event loop: `start`, then `drain` if there is time, then `stop`."""

    def __init__(
        self, config: RouterConfig, *, exporter: SpanExporter | None = None, times: LinkTimes | None = None
    ) -> None:
        """Read the model's tokenizer; open no socket yet.

        Raises:
            ModelNotFound: there is no model directory of the configured name.
        """
        directory = resolve_model(config.model)
        model_name = config.model_name or served_name(config.model)
        tokenizer = Tokenizer(directory, cache_bytes=config.tokenizer_cache)
        self._config = config
        self._metrics = RouterMetrics()
        self._provider = tracer_provider(
            service="octavo-router",
            instance=config.router_id,
            version=package_version(),
            endpoint=config.otlp_endpoint,
            sample_ratio=config.trace_sample_ratio,
            exporter=exporter,
        )
        self.fleet = Fleet(
            config.static_engines,
            router_id=config.router_id,
            model_name=model_name,
            tokenizer_revision=tokenizer.revision,
            times=times,
        )
        self.admission = self._admission()
        self.bus = self._bus()
        self._tokenizer = TokenizerThreads(tokenizer, num_threads=config.tokenizer_threads)
        self._routing = Routing(self.fleet, weights=Weights(), note=self.bus.note if self.bus else _no_note)
        self._health = health_aio.HealthServicer()
        self._vocab_size = _vocab_size(directory, tokenizer)
        self._model_name = model_name
        self._servers: list[grpc.aio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._page: MetricsPage | None = None
        self._bound: Bound | None = None

    @property
    def bound(self) -> Bound:
        """Where this router serves; only after `start`."""
        assert self._bound is not None, "start() has not returned"  # noqa: S101
        return self._bound

    async def start(self) -> Bound:
        """Open all ports, then dial engines and Redis. Serves at once; without engines requests are refused.

        Raises:
            ListenError: a port cannot be opened; `stop` is still needed.
        """
        config = self._config
        public = self._public_server()
        admin = grpc.aio.server(interceptors=[ErrorInterceptor()], options=(("grpc.so_reuseport", 0),))
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminService(self.fleet, self.admission, drain=self.drain), admin
        )
        enable_reflection(admin, (admin_pb2.DESCRIPTOR,))
        self._servers = [public, admin]
        address = bind(public, config.listen, "listen")
        admin_address = bind(admin, config.admin_listen, "admin_listen")
        self._page = MetricsPage(self._metrics.registry, config.metrics_listen)
        self.fleet.start()
        if self.bus is not None:
            self.bus.start()
        self._tasks = [
            asyncio.create_task(self._keep_health(), name="health"),
            asyncio.create_task(self._keep_gauges(), name="gauges"),
        ]
        for server in self._servers:
            await server.start()
        self._bound = Bound(address=address, admin_address=admin_address, metrics_address=self._page.address)
        return self._bound

    async def drain(self, grace_s: float | None = None) -> int:
        """Turn the health to NOT_SERVING and wait for what runs; return how many requests did not end in time."""
        await self._set_ready(ready=False)
        return await self.admission.drain(self._config.drain_grace_s if grace_s is None else grace_s)

    async def stop(self) -> None:
        """Close everything; requests that still run are cancelled, here and at their engines."""
        await self._set_ready(ready=False)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(server.stop(0) for server in self._servers))
        if self.bus is not None:
            await self.bus.close()
        await self.fleet.close()
        self._tokenizer.close()
        await asyncio.to_thread(self._stop_threads)
        _log.info("router_stopped", router_id=self._config.router_id)

    def _stop_threads(self) -> None:
        if self._page is not None:
            self._page.close()
        self._provider.shutdown()

    def _public_server(self) -> grpc.aio.Server:
        config = self._config
        # A token id takes up to five bytes on the wire, about as many as the text that it stands for.
        max_message_bytes = 5 * config.max_prompt_bytes + _MESSAGE_SLACK_BYTES
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=(
                ("grpc.so_reuseport", int(config.reuse_port)),
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.http2.min_ping_interval_without_data_ms", 1000),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        service = InferenceService(
            router_id=config.router_id,
            model_name=self._model_name,
            limits=ServiceLimits(
                default_max_tokens=config.default_max_tokens,
                default_timeout_s=config.default_timeout_s,
                max_timeout_s=config.max_timeout_s,
                max_prompt_bytes=config.max_prompt_bytes,
                vocab_size=self._vocab_size,
            ),
            dispatch_limits=DispatchLimits(
                max_ahead_tokens=config.max_ahead_tokens, max_moves=config.max_moves, move_wait_s=config.move_wait_s
            ),
            admission=self.admission,
            tokenizer=self._tokenizer,
            routing=self._routing,
            metrics=self._metrics,
            tracer=tracer(self._provider),
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        enable_reflection(server, (inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR))
        return server

    def _admission(self) -> Admission:
        config = self._config
        limits = QueueLimits(
            max_queued_tokens=config.max_queued_tokens,
            tenant_max_queued_tokens=config.tenant_max_queued_tokens,
            max_tokens_in_flight=config.max_tokens_in_flight,
            tenant_max_tokens_in_flight=config.tenant_max_tokens_in_flight,
            max_queue_s=config.max_queue_s,
            fair_quantum_tokens=config.fair_quantum_tokens,
            batch_share=config.batch_share,
            max_tenants=config.max_tenants,
        )
        turns = Turns(
            AdmissionQueue(limits),
            gate=Gate(self.fleet, queue_s=config.engine_queue_s),
            metrics=self._metrics,
            no_engine_s=config.move_wait_s,
        )
        return Admission(turns, max_in_flight=config.max_in_flight, metrics=self._metrics)

    def _bus(self) -> RedisBus | None:
        config = self._config
        if config.redis_url is None:
            return None
        keys = RedisKeys(config.redis_prefix)
        return RedisBus(config.redis_url, keys, router_id=config.router_id, fleet=self.fleet)

    async def _keep_health(self) -> None:
        """Ready means: a request would be taken now. Alive ("") is said by answering at all."""
        while True:
            changed = self.fleet.changed
            await self._set_ready(ready=bool(self.fleet.serving()) and not self.admission.is_draining)
            await changed.wait()

    async def _set_ready(self, *, ready: bool) -> None:
        states = health_pb2.HealthCheckResponse
        await self._health.set("", states.SERVING)
        await self._health.set(_INFERENCE, states.SERVING if ready else states.NOT_SERVING)

    async def _keep_gauges(self) -> None:
        known: set[str] = set()
        while True:
            counts = Counter(link.state for link in self.fleet.links)
            for state in LinkState:
                self._metrics.engines.labels(state.value).set(counts[state])
            self._metrics.redis_up.set(self.bus is not None and self.bus.is_up)
            current = {engine.engine_id for engine in self.fleet.engines}
            for engine_id in known - current:
                self._metrics.resident_pages.remove(engine_id)
            for engine_id in current:
                self._metrics.resident_pages.labels(engine_id).set(self.fleet.directory.num_resident(engine_id))
            known = current
            await asyncio.sleep(_GAUGE_PERIOD_S)


def _vocab_size(directory: Path, tokenizer: Tokenizer) -> int:
    """Return the model's vocabulary size, which may be padded beyond the tokenizer's."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    return size if isinstance(size, int) else tokenizer.vocab_size


def _no_note(_note: PlacementNote) -> None:
    """Without Redis there is nobody to tell."""
