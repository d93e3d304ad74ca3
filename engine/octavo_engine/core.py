"""The core process: loads the model, then steps until the front says stop or goes away.

Started by the front as `python -m octavo_engine.core FD`: FD is its end of a socket pair, and the configuration comes as
JSON on standard input. It prints logs, listens to nobody else, and dies with its front.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

import structlog
from octavo.attributes import Log
from octavo.logs import configure_logs
from octavo.model_directory import ModelNotFound

from octavo_engine import messages
from octavo_engine.config import EngineConfig
from octavo_engine.pages import PagePool
from octavo_engine.pipe import CorePipe, FrontGone
from octavo_engine.runner import Loaded, ModelFacts
from octavo_engine.scheduler import Scheduler, SchedulerConfig
from octavo_engine.step_loop import StepLoop, StepLoopFailed

EXIT_FAILED: Final = 70
"""Exit status after a failure that a restart may cure (sysexits EX_SOFTWARE)."""

_PR_SET_PDEATHSIG = 1
_log = structlog.get_logger()

Load = Callable[[EngineConfig, Callable[[str, float], None]], Loaded]


def main(load: Load | None = None) -> int:
    """Run a core; return its exit status.

    Args:
        load: loads the model; default `loading.load`.
    """
    config = EngineConfig.model_validate_json(sys.stdin.read())
    configure_logs(level=config.log_level, form=config.log_form)
    structlog.contextvars.bind_contextvars(**{Log.ENGINE_ID: config.engine_id})
    # The front decides when to stop: a terminal or a service manager signals every process of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":  # a front that was killed must not leave a core in a long step behind
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe = CorePipe(socket.socket(fileno=int(sys.argv[-1])))
    try:
        if load is not None:
            return serve(pipe, config, load)
        # Seconds of imports, which a load of one's own does without.
        from octavo_engine.backends.ops import NotExact  # noqa: PLC0415
        from octavo_engine.loading import load as load_model  # noqa: PLC0415
        from octavo_engine.models.config import UnsupportedModel  # noqa: PLC0415

        return serve(pipe, config, load_model, (ModelNotFound, UnsupportedModel, NotExact))
    finally:
        pipe.close()


def share_cores() -> None:
    """Let OpenMP's threads sleep when they have nothing to do; call before torch is imported.

    By default they spin, on a core that the kernels' own threads, the front or another engine could use: with more
    runnable threads than cores a product then waits for a whole scheduler slice at its barrier.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def serve(pipe: CorePipe, config: EngineConfig, load: Load, refusals: tuple[type[Exception], ...] = ()) -> int:
    """Load the model and run its steps; return the exit status.

    Args:
        pipe: the way to the front.
        config: the engine's configuration.
        load: loads the model.
        refusals: errors of `load` that say, for people, why this model cannot be served.
    """
    try:
        started = time.monotonic()
        loaded = load(config, lambda stage, done: pipe.send(messages.Progress(stage, done)))
        scheduler = scheduler_of(config, loaded.facts)
        pipe.send(_ready(config, loaded.facts, scheduler, time.monotonic() - started))
    except FrontGone:
        return 0
    except refusals as error:
        return _fail(pipe, messages.MODEL_REFUSED, str(error))
    except Exception as error:  # noqa: BLE001 - the outermost frame of loading
        _log.error("model_load_failed", exc_info=error)
        return _fail(pipe, "model_load_failed", "the model could not be loaded; the core's log says why")
    gc.collect()
    gc.freeze()
    gc.disable()  # the loop collects between steps: a collection in mid-step would be somebody's inter-token gap
    try:
        StepLoop(pipe, scheduler, loaded.runner).run()
    except FrontGone:
        _log.warning("front_gone")
    except StepLoopFailed as error:
        return _fail(pipe, "engine_core_failed", str(error) or "steps keep failing; the core's log says why")
    except Exception as error:  # noqa: BLE001 - the outermost frame of the step loop
        _log.error("step_loop_failed", exc_info=error)
        return _fail(pipe, "engine_core_failed", "the step loop failed; the core's log says why")
    loaded.runner.close()
    return 0


def scheduler_of(config: EngineConfig, facts: ModelFacts) -> Scheduler:
    """Return the scheduler that a configuration and a loaded model ask for."""
    return Scheduler(
        SchedulerConfig(
            max_sequences=config.sequences(facts.device),
            max_model_len=facts.max_model_len,
            watermark=config.watermark,
            prefix_caching=config.prefix_caching,
        ),
        PagePool(num_pages=facts.num_pages, page_size=facts.page_size),
        config.step_budget(facts.device),
    )


def _ready(config: EngineConfig, facts: ModelFacts, scheduler: Scheduler, load_s: float) -> messages.Ready:
    return messages.Ready(
        model_name=facts.name,
        model_revision=facts.revision,
        tokenizer_revision=facts.tokenizer_revision,
        max_model_len=scheduler.max_len,
        vocab_size=facts.vocab_size,
        eos_token_ids=list(facts.eos_token_ids),
        page_size=facts.page_size,
        num_pages=facts.num_pages,
        backend=facts.backend,
        device=facts.device,
        dtype=facts.dtype,
        numerics=facts.numerics,
        max_step_tokens=config.step_tokens(facts.device),
        max_sequences=config.sequences(facts.device),
        load_s=load_s,
        prefix_caching=config.prefix_caching,
    )


def _fail(pipe: CorePipe, reason: str, message: str) -> int:
    try:
        pipe.send(messages.Failed(reason, message))
        pipe.flush()
    except FrontGone:
        pass  # nobody is left to tell
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
