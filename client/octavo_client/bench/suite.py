"""The suite: named workloads on models of given shapes, offline and through the router, each beside its floor.

Whatever fails is reported and kept as failed, and the rest goes on with the model loaded anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final

from octavo.model_directory import served_name
from octavo.workloads import Workload, parse

from octavo_client.bench.model import Model
from octavo_client.bench.offline_session import LOAD_LIMIT_S, offline_session
from octavo_client.bench.peers import find_peer
from octavo_client.bench.results import Result
from octavo_client.bench.roofline import Ceilings, ModelSize, Roofline
from octavo_client.bench.router_session import router_session
from octavo_client.bench.session import Figure, MeasureFailed, Session, Subject
from octavo_client.bench.worker import WorkerFailed, worker

DEFAULT_SHAPES: Final = ("llama-8b", "qwen3-0.6b")
# The largest batch is what the pages of a card of 80 GB hold.
_DECODES: Final[Mapping[str, Sequence[str]]] = {
    "llama-8b": ("decode:1", "decode:32", "decode:128"),
    "qwen3-0.6b": ("decode:1", "decode:32", "decode:256"),
}
_BATCHES: Final = ("single_stream", "prefill", "steady_batch", "shared_prefix", "throughput")
_SERVED: Final = ("serve:1", "serve:32", "serve:128", "serve:256")
_NUMBER_BYTES: Final = {"float32": 4}

Open = Callable[[Subject], AbstractAsyncContextManager[Session]]
"""Loads a model for a target."""
SESSIONS: Final[Mapping[str, Open]] = {"offline": offline_session, "router": router_session}
TARGETS: Final = tuple(SESSIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteOptions:
    """What to measure.

    Attributes:
        shapes: names of random models, or model directories.
        workloads: by name; None means the suite's own for each shape.
        numerics: modes of the engine, one after the other.
        targets: "offline" (in process) and "router" (real processes over gRPC).
        settings: of the engine, by name, for both targets.
        offline_settings: besides, for offline runs alone.
        threads: of the CPU.
        routers: router processes behind one address.
        limit_s: no workload starts later than this; what is left is kept as not run. None: no limit.
    """

    shapes: Sequence[str] = DEFAULT_SHAPES
    workloads: Sequence[str] | None = None
    numerics: Sequence[str] = ("fast", "exact")
    targets: Sequence[str] = TARGETS
    settings: Mapping[str, str] = field(default_factory=dict)
    offline_settings: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    routers: int = 1
    limit_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Stage:
    """One load of one model: its workloads run on it, or on another load if one fails."""

    shape: str
    target: str
    subject: Subject
    config: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.shape} {self.subject.numerics} {self.target}"


class Suite:
    """Runs the suite once.

    Args:
        options: what to measure.
        tell: gets a line for a person as the work goes on.
        keep: gets results as they come.
        sessions: how a model is loaded for each target.
    """

    def __init__(
        self,
        options: SuiteOptions,
        *,
        tell: Callable[[str], None],
        keep: Callable[[Sequence[Result]], None],
        sessions: Mapping[str, Open] = SESSIONS,
    ) -> None:
        self._options = options
        self._tell = tell
        self._keep = keep
        self._sessions = sessions
        self._started = time.monotonic()
        self._ceilings: Ceilings | None = None
        self._card: str | None = None

    async def run(self) -> None:
        """Measure the ceilings, then each shape, offline first, in each mode of numerics.

        Raises:
            ModelNotFound: no model of a given shape.
            ValueError: no workload of a given name.
        """
        stages = [
            (self._stage(shape, target, numerics), self._workloads(shape, target))
            for shape in self._options.shapes
            for target in self._options.targets
            for numerics in self._options.numerics
        ]
        await self._measure_ceilings()
        for stage, workloads in stages:
            await self._run_stage(stage, workloads)
        self._tell(f"over after {time.monotonic() - self._started:.0f} s")

    def _stage(self, shape: str, target: str, numerics: str) -> _Stage:
        options = self._options
        model = Model.of(shape)
        subject = Subject(
            directory=model.directory,
            numerics=numerics,
            settings=dict(options.settings) | (dict(options.offline_settings) if target == "offline" else {}),
            threads=options.threads,
            highest_id=model.highest_id,
            routers=options.routers,
        )
        return _Stage(served_name(shape), target, subject, model.config)

    def _workloads(self, shape: str, target: str) -> list[Workload]:
        names = self._options.workloads
        if names is None:
            served = _SERVED if target == "router" else _SERVED[-1:]
            names = ["start", *_DECODES.get(shape, _DECODES["llama-8b"]), *_BATCHES, *served]
        chosen = [workload for workload in map(parse, names) if target in _targets_of(workload)]
        return sorted(chosen, key=lambda workload: workload.kind != "start")

    async def _measure_ceilings(self) -> None:
        try:
            async with worker(
                "ceilings", model="", threads=self._options.threads, load_limit_s=LOAD_LIMIT_S
            ) as measured:
                facts = dict(measured.facts)
        except WorkerFailed as error:
            self._tell(f"no ceilings, hence no floors: {error}")
            return
        self._card = facts.pop("card")
        self._ceilings = ceilings = Ceilings(**facts)
        self._tell(
            f"{self._card or 'CPU'}: copy {ceilings.copy_bytes_s / 1e9:.0f} GB/s, "
            f"read {ceilings.read_bytes_s / 1e9:.0f} GB/s, product {ceilings.gemm_flop_s / 1e12:.2f} TFLOP/s"
            + (f", {sustained / 1e12:.2f} if it lasts" if (sustained := ceilings.sustained_flop_s) else "")
        )

    async def _run_stage(self, stage: _Stage, workloads: Sequence[Workload]) -> None:
        """Run workloads on a loaded model; after a failure the rest gets a new one."""
        waiting = deque(workloads)
        while waiting and not self._is_late:
            self._tell(f"{stage.title}: loading")
            try:
                async with self._sessions[stage.target](stage.subject) as session:
                    await self._run_in(session, stage, waiting)
            except MeasureFailed as error:  # it does not load, and would not load again
                self._failed(stage, waiting, str(error))
                return
        self._failed(stage, waiting, f"not run: the limit of {self._options.limit_s or 0:.0f} s was over")

    async def _run_in(self, session: Session, stage: _Stage, waiting: deque[Workload]) -> None:
        """Run workloads until none is left, one fails or time is over."""
        while waiting and not self._is_late:
            workload = waiting.popleft()
            try:
                figures = await session.measure(workload)
            except MeasureFailed as error:
                self._failed(stage, [workload], str(error))
                return
            results = [self._result(stage, session, workload, figure) for figure in figures]
            self._keep(results)
            for result in results:
                self._tell(f"{stage.title} {workload.name}: {spoken(result)}")

    @property
    def _is_late(self) -> bool:
        limit_s = self._options.limit_s
        return limit_s is not None and time.monotonic() - self._started > limit_s

    def _failed(self, stage: _Stage, workloads: Sequence[Workload] | deque[Workload], reason: str) -> None:
        results = [
            Result(
                engine="octavo",
                variant=stage.subject.numerics,
                target=stage.target,
                shape=stage.shape,
                workload=workload.name,
                card=self._card,
                error=reason,
            )
            for workload in workloads
        ]
        self._keep(results)
        for result in results:
            self._tell(f"{stage.title} {result.workload}: FAILED: {reason}")

    def _result(self, stage: _Stage, session: Session, workload: Workload, figure: Figure) -> Result:
        floor = None
        details = {"dtype": session.dtype, "settings": stage.subject.settings} | figure.details
        if self._ceilings is not None:
            if workload.kind == "prefill" and self._ceilings.sustained_flop_s is not None:
                details |= {name: getattr(self._ceilings, name) for name in ("gemm_flop_s", "sustained_flop_s")}
            size = ModelSize.of(stage.config, _NUMBER_BYTES.get(session.dtype, 2))
            floor = Roofline(size, self._ceilings).floors(workload).get(figure.metric)
        return Result(
            engine="octavo",
            variant=session.numerics,
            target=stage.target,
            shape=stage.shape,
            workload=workload.name,
            metric=figure.metric,
            runs=figure.runs,
            card=self._card,
            floor=floor,
            peer=find_peer(stage.shape, stage.target, workload.name, figure.metric, self._card or ""),
            details=details,
        )


def spoken(result: Result) -> str:
    """Return a figure for a person, such as "7.1 ms_per_step, 90% of the best possible 6.4"."""
    parts = [f"{result.value:.4g} {result.metric}"]
    if result.fraction is not None:
        parts.append(f", {result.fraction:.0%} of the best possible {result.floor:.4g}")
    if (peer := result.peer) is not None:
        share = "" if peer.fraction is None else f" ({peer.fraction:.0%})"
        parts.append(f"; {peer.engine} {peer.value:g}{share} on {peer.hardware}")
    if result.ratio is not None:
        parts.append(f"; {result.ratio:.2f} times as good")
    return "".join(parts)


def _targets_of(workload: Workload) -> tuple[str, ...]:
    return TARGETS if workload.kind in {"start", "serve"} else ("offline",)
