"""The front process: wires the parts of an engine together, serves, drains. It never computes and imports no torch."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import structlog
from octavo.errors import Unavailable
from octavo.process import StopRequest, package_version, write_ready_file
from octavo.redis_keys import RedisKeys
from octavo.serving import MetricsPage
from octavo.settings import ConfigError
from octavo.tracing import tracer, tracer_provider
from octavo.v1 import engine_pb2

from octavo_engine import messages
from octavo_engine.admin import AdminService
from octavo_engine.clock import Clock
from octavo_engine.compat.gateways import Gateways
from octavo_engine.config import EngineConfig
from octavo_engine.core_process import CoreProcess
from octavo_engine.core_watch import CoreWatch, cpu_time_s
from octavo_engine.draining import Draining
from octavo_engine.identity import engine_info
from octavo_engine.link import Link
from octavo_engine.metrics import Metrics
from octavo_engine.page_events import ResidentPages, publish
from octavo_engine.readiness import Readiness
from octavo_engine.request_log import log_finished
from octavo_engine.sequence import FinishReason
from octavo_engine.servers import Servers
from octavo_engine.service import EngineService
from octavo_engine.spans import SpanRecorder
from octavo_engine.switchboard import Switchboard
from octavo_engine.validation import Validator

if TYPE_CHECKING:
    from octavo_engine.registry import Registry

EXIT_FAILED: Final = 70
"""Exit status after a failure that a restart may cure (sysexits EX_SOFTWARE)."""
HEARTBEAT_S: Final = 0.1
"""What other routers sent here a router knows from heartbeats alone where placement notes do not reach it."""

_FLUSH_TIMEOUT_S = 10.0
_CORE_STOP_S = 5.0
_LINGER_S = 0.5  # from the end of a drain to that of the links: a few heartbeats
_log = structlog.get_logger()


class Front:
    """One engine, from start to exit.

    Args:
        config: its configuration.
        core: its core, started: the child must be forked before gRPC makes threads.
    """

    def __init__(self, config: EngineConfig, core: CoreProcess) -> None:
        self._config = config
        self._core = core
        self._epoch = time.time_ns()
        self._version = package_version()
        clock = Clock.now()
        self._tracing = tracer_provider(
            service="octavo-engine",
            instance=config.engine_id,
            version=self._version,
            endpoint=config.otlp_endpoint,
            sample_ratio=config.trace_sample_ratio,
        )
        self._spans = SpanRecorder(tracer(self._tracing), clock, engine_id=config.engine_id, epoch=self._epoch)
        self._metrics = Metrics()
        self._pages = ResidentPages(self._epoch)
        self._readiness = Readiness()
        self._gateways = Gateways(config)
        self._watch = CoreWatch(lambda: cpu_time_s(core.pid), limit_s=config.stall_s)
        self._switchboard = Switchboard(
            clock=clock,
            max_waiting=config.max_waiting,
            max_waiting_tokens=config.max_waiting_tokens,
            on_step=(
                self._metrics.take_step,
                self._pages.take_step,
                *self._gateways.on_step,
            ),
            on_finish=(self._metrics.take_finished, self._spans.take_finished, log_finished),
        )
        self._service = EngineService(self._switchboard, self._pages)
        self._admin = AdminService(self.drain, self.flush)
        self._registry: Registry | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stop = StopRequest()
        self._flushed: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
        self._draining = Draining(self._switchboard, leave_service=self._leave_service, hurried=self._stop.hurried)
        self._is_core_ended = False
        self._told_progress = ("", 0)

    async def run(self) -> int:
        """Serve until a signal, the end of standard input or a failure; return the exit status."""
        config = self._config
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, self._tracing.shutdown)
            stack.push_async_callback(self._stop_core)
            page = MetricsPage(self._metrics.registry, config.metrics_listen)
            stack.push_async_callback(asyncio.to_thread, page.close)
            stack.push_async_callback(self._cancel_tasks)
            self._gateways.connect(self._switchboard, self._readiness, self.flush)
            servers = await Servers.start(config, self._service, self._admin, self._readiness, self._gateways.add_to)
            stack.push_async_callback(servers.stop)
            stack.callback(self._finish_links)
            _log.info("engine_bound", address=servers.address, admin_address=servers.admin_address)
            self._stop.watch_signals()
            self._own(self._read_core(servers, page), "core")
            self._own(self._pulse(), "pulse")
            self._own(publish(self._pages, self._tell_pages), "pages")
            self._own(self._drain_on_stop(), "stop")
            if config.exit_with_stdin:
                self._stop.watch_stdin(hurry=True)
            status = await self._exit
        _log.info("engine_stopped", status=status)
        return status

    # --- operations ---

    async def drain(self, grace_s: float | None) -> tuple[int, int]:
        """Take nothing new, let requests end for the grace, hand the rest over.

        Returns:
            Requests that ended in time, and requests handed over.
        """
        return await self._draining.drain(self._config.drain_grace_s if grace_s is None else grace_s)

    async def flush(self) -> int:
        """Drop the cached pages; return their number."""
        while not self._flushed.empty():
            self._flushed.get_nowait()
        self._switchboard.flush()
        try:
            return await asyncio.wait_for(self._flushed.get(), _FLUSH_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable("core_busy", "the engine core does not answer; try again", retry_after_s=1.0) from None

    async def _leave_service(self) -> None:
        self._switchboard.load.draining = True
        await self._readiness.hold("draining")
        self._beat()
        if self._registry is not None:
            await self._registry.leave("drain")

    async def _drain_on_stop(self) -> None:
        await self._stop.asked.wait()
        await self.drain(None)
        if any(isinstance(reader, Link) for reader in self._switchboard.readers):
            # A router that has not heard yet may just be sending a request: it is refused, rather than cut off.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.hurried.wait(), _LINGER_S)
        self._finish(0)

    # --- the core ---

    async def _read_core(self, servers: Servers, page: MetricsPage) -> None:
        async for report in self._core.reports():
            self._is_core_ended = isinstance(report, messages.Failed)
            if isinstance(report, messages.StepFrame):
                self._switchboard.take_step(report)
            elif isinstance(report, messages.Ready):
                await self._open(report, servers, page)
            elif isinstance(report, messages.Progress):
                self._tell_progress(report)
            elif isinstance(report, messages.Flushed):
                if not self._flushed.full():
                    self._flushed.put_nowait(report.num_pages)
            else:
                _log.error("engine_core_failed", reason=report.reason, message=report.message)
                if report.reason == messages.MODEL_REFUSED:
                    raise ConfigError([f"model: {report.message}"])
        self._is_core_ended = True
        if not self._exit.done():
            await self._lose_core()

    async def _open(self, ready: messages.Ready, servers: Servers, page: MetricsPage) -> None:
        config = self._config
        validator = Validator(ready)
        info = engine_info(config, ready, validator, epoch=self._epoch, version=self._version)
        self._spans.model = ready.model_name
        self._switchboard.load.open(ready.num_pages)
        self._switchboard.open(self._core, validator)
        self._service.open(info)
        self._gateways.open(info)
        address = config.advertise or servers.address
        if config.redis_url and not self._draining.has_begun:
            from octavo_engine.registry import Registry  # noqa: PLC0415 - a fifth of the start-up time, seldom needed

            self._registry = Registry(
                config.redis_url,
                RedisKeys(config.redis_prefix),
                info=info,
                address=address,
                load=self._switchboard.load.message,
                on_change=self._metrics.redis_up,
            )
            self._own(self._registry.run(), "registry")
        gc.collect()
        gc.freeze()  # what lives now lives on: later collections need not look at it, and stay short
        _log.info("model_loaded", model=ready.model_name, num_pages=ready.num_pages, load_s=round(ready.load_s, 3))
        await self._readiness.release("loading")
        addresses = {
            "address": address,
            "admin_address": servers.admin_address,
            "metrics_address": page.address,
        }
        if config.ready_file is not None:
            write_ready_file(config.ready_file, addresses)
        _log.info("engine_listening", **addresses)

    def _tell_progress(self, report: messages.Progress) -> None:
        tenth = (report.stage, int(report.done * 10))
        if tenth != self._told_progress:
            self._told_progress = tenth
            _log.info("model_loading", stage=report.stage, done=round(report.done, 2))

    async def _lose_core(self) -> None:
        _log.error("engine_core_lost", pid=self._core.pid, num_requests=len(self._switchboard))
        self._switchboard.refuse(Unavailable("engine_core_failed", "the engine core failed; use another engine"))
        self._switchboard.end_all(FinishReason.ERROR, "engine_core_failed")
        await self._readiness.hold("core_lost")
        if self._registry is not None:
            await self._registry.leave("leave")
        self._finish(EXIT_FAILED)

    # --- background ---

    async def _pulse(self) -> None:
        while True:
            now_ns = time.monotonic_ns()
            silent_s = (now_ns - self._switchboard.last_frame_ns) / 1e9 if len(self._switchboard) else 0.0
            self._switchboard.load.stalled = self._watch.is_stalled(silent_s, now_ns / 1e9)
            self._beat()
            if self._switchboard.load.stalled:
                await self._readiness.hold("stalled")
            else:
                await self._readiness.release("stalled")
            await asyncio.sleep(HEARTBEAT_S)

    def _beat(self) -> None:
        for reader in self._switchboard.readers:
            if isinstance(reader, Link):
                reader.beat()

    def _tell_pages(self, events: engine_pb2.PageEvents) -> None:
        response = engine_pb2.LinkResponse(pages=events)
        for reader in self._switchboard.readers:
            if isinstance(reader, Link) and reader.wants_pages:
                reader.deliver(response)
        if self._registry is not None:
            self._registry.publish(events)

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, ConfigError):
                if not self._exit.done():
                    self._exit.set_exception(error)
                return
            _log.error("engine_task_failed", task=task.get_name(), exc_info=error)
            self._switchboard.end_all(FinishReason.ERROR, "engine_failed")
            self._finish(EXIT_FAILED)

    def _finish(self, status: int) -> None:
        if not self._exit.done():
            self._exit.set_result(status)

    def _finish_links(self) -> None:
        for reader in self._switchboard.readers:
            if isinstance(reader, Link):
                reader.finish()

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._draining.close()
        if self._registry is not None:
            await self._registry.leave("leave")
            await self._registry.close()

    async def _stop_core(self) -> None:
        is_loading = not self._switchboard.is_open and not self._is_core_ended  # then it does not listen yet
        await self._core.stop(0.0 if self._stop.hurried.is_set() or is_loading else _CORE_STOP_S)
