"""Turns a model directory and a configuration into a runner: chooses backend, types and pool size, loads the weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from typing import Any, Final

import structlog
import torch
from octavo.model_directory import DEFAULT_MODEL, resolve_model, served_name
from octavo.revision import model_revision, tokenizer_revision

from octavo_engine.backends.ops import NotExact
from octavo_engine.config import EngineConfig
from octavo_engine.model_runner import ModelRunner
from octavo_engine.models.config import ModelConfig, UnsupportedModel, read_config
from octavo_engine.models.decoder import Decoder
from octavo_engine.models.weights import Fetch, open_weights
from octavo_engine.pool_size import pages_of_pool
from octavo_engine.runner import Loaded, ModelFacts, Runner
from octavo_engine.warm_up import warm_up_plans

Progress = Callable[[str, float], None]

_log = structlog.get_logger()

_DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load(config: EngineConfig, progress: Progress) -> Loaded:
    """Load the configured model.

    Raises:
        ModelNotFound, UnsupportedModel: the model cannot be served; the message says why.
    """
    directory = resolve_model(config.model or DEFAULT_MODEL)
    model = read_config(directory)
    progress("load weights", 0.0)
    runner, facts = build_runner(
        model,
        open_weights(directory, model, _device(config)),
        config,
        name=config.model_name or served_name(config.model or DEFAULT_MODEL),
        revision=model_revision(directory),
        tokenizer=tokenizer_revision(directory),
        progress=progress,
    )
    return Loaded(runner=runner, facts=facts)


def build_runner(
    model: ModelConfig,
    fetch: Fetch,
    config: EngineConfig,
    *,
    name: str,
    revision: str,
    tokenizer: str,
    progress: Progress,
) -> tuple[Runner, ModelFacts]:
    """Build the runner of a model whose tensors `fetch` gives, and what the engine tells about it."""
    device = _device(config)
    backend = config.backend if config.backend != "auto" else ("triton" if device.type == "cuda" else "torch")
    if backend == "torch" and device.type != "cpu":
        raise UnsupportedModel("the torch backend computes on the CPU only: use --backend triton on a GPU")
    dtype = _dtype(config, model, device)
    max_len = min(config.max_model_len or model.max_position, model.max_position)
    num_pages = pages_of_pool(config, model, dtype, device, max_len, _workspace(backend, model, config, device))
    max_len = min(max_len, num_pages * config.page_size)
    pool = torch.zeros(
        num_pages, model.num_layers, 2, model.num_kv_heads, config.page_size, model.head_dim, dtype=dtype, device=device
    )

    exact = config.numerics != "fast"
    build = _gpu_runner if backend == "triton" else _cpu_runner
    try:
        runner = build(model, fetch, pool, config, max_len, progress, exact=exact)
    except NotExact as error:
        if config.numerics == "exact":
            raise
        _log.warning("numerics_fast", reason=str(error))
        exact = False
        runner = build(model, fetch, pool, config, max_len, progress, exact=exact)
    facts = ModelFacts(
        name=name,
        revision=revision,
        tokenizer_revision=tokenizer,
        max_model_len=max_len,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        page_size=config.page_size,
        num_pages=num_pages,
        backend=backend,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        numerics="exact" if exact else "fast",
    )
    return runner, facts


# A GPU's engine imports nothing of the CPU's, and the other way round: Triton and Numba both take seconds.
# ruff: noqa: PLC0415


def _cpu_runner(
    model: ModelConfig,
    fetch: Fetch,
    pool: torch.Tensor,
    config: EngineConfig,
    max_len: int,
    progress: Progress,
    *,
    exact: bool,
) -> Runner:
    from octavo_engine.backends.cpu_linear import CpuLinear
    from octavo_engine.backends.cpu_ops import CpuOps
    from octavo_engine.backends.row_threads import RowThreads

    threads = config.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    # Tiles cost far more than a tenth at small batches: `auto` then prefers `fast`.
    row_threads = RowThreads(threads)
    linear = CpuLinear(pool.dtype, exact=exact, tiles=config.numerics == "exact", threads=row_threads)
    ops = CpuOps(model, pool, max_len=max_len, threads=row_threads, linear=linear)
    try:
        decoder = Decoder(model, fetch, ops, lambda share: progress("load weights", share))
    except BaseException:
        ops.close()
        raise
    progress("warm up", 0.0)
    runner = ModelRunner(decoder, ops, page_size=config.page_size)
    runner.warm_up()
    return runner


def _gpu_runner(
    model: ModelConfig,
    fetch: Fetch,
    pool: torch.Tensor,
    config: EngineConfig,
    max_len: int,
    progress: Progress,
    *,
    exact: bool,
) -> Runner:
    """Build a runner whose kernels are compiled while most layers are still being loaded."""
    from octavo_engine.backends.triton_ops import TritonOps
    from octavo_engine.pipelined_runner import PipelinedRunner

    device = pool.device
    ops = TritonOps(model, pool, max_len=max_len, max_sequences=_most_rows(config, device), exact=exact)

    def compiled(decoder: Decoder) -> PipelinedRunner:
        runner = PipelinedRunner(
            decoder,
            ops,
            page_size=config.page_size,
            max_sequences=config.sequences(device.type),
            max_len=max_len,
            max_step_tokens=config.step_tokens(device.type),
            device=device,
        )
        runner.compile()
        return runner

    compiling: list[Future[PipelinedRunner]] = []

    def sketched(decoder: Decoder) -> None:
        compiling.append(thread.submit(copy_context().run, compiled, decoder))
        at_failure.callback(_close, compiling[0])

    with ThreadPoolExecutor(1, "compile") as thread, ExitStack() as at_failure:
        Decoder(model, fetch, ops, lambda share: progress("load weights", share), sketched)
        progress("warm up", 0.0)
        runner = compiling[0].result()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # weights came on another stream than steps run on
        runner.warm_up()
        at_failure.pop_all()
    return runner


def _close(compiling: Future[Any]) -> None:
    """Close a runner that cannot be used: a process does not end before compilers do."""
    if compiling.exception() is None:
        compiling.result().close()


def _workspace(backend: str, model: ModelConfig, config: EngineConfig, device: torch.device) -> Callable[[int], int]:
    """Return the bytes that a backend's operations keep for themselves, as a function of the longest sequence."""
    if backend != "triton":
        return lambda _max_len: 0
    from octavo_engine.backends.triton_ops import workspace_bytes

    rows = _most_rows(config, device)
    return lambda max_len: workspace_bytes(model, config.page_size, max_len=max_len, max_sequences=rows)


def _most_rows(config: EngineConfig, device: torch.device) -> int:
    """Return the most rows of a step on the `triton` backend, with padding."""
    from octavo_engine.decode_step import padded_size

    return max(padded_size(config.sequences(device.type)), len(warm_up_plans()[0].rows))


def _device(config: EngineConfig) -> torch.device:
    if config.device != "auto":
        return torch.device(config.device)
    if config.backend == "torch" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def _dtype(config: EngineConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if device.type == "cpu":
        from octavo_engine.backends.cpu_linear import bfloat16_is_fast

        return torch.bfloat16 if model.dtype == "bfloat16" and bfloat16_is_fast() else torch.float32
    return _DTYPES.get(model.dtype, torch.bfloat16)
