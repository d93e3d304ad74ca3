from __future__ import annotations

from pathlib import Path

import pytest
import torch
from octavo.random_model import write_random_model
from octavo_engine.config import EngineConfig
from octavo_engine.models.config import ModelConfig, UnsupportedModel, read_config
from octavo_engine.models.weights import num_parameters
from octavo_engine.pool_size import pages_of_pool
from support.tiny_models import write_model

GIB = 1 << 30


def model_of(directory: Path, shape: str) -> ModelConfig:
    write_random_model(directory, shape)
    return read_config(directory)


def pages(
    model: ModelConfig, *, device: str = "cuda", max_len: int = 8192, workspace: int = 0, **settings: object
) -> int:
    """Pages of a pool beside a workspace of so many bytes a token of the longest sequence."""
    config = EngineConfig.model_validate(settings)
    return pages_of_pool(
        config, model, torch.bfloat16, torch.device(device), max_len, lambda longest: longest * workspace
    )


def memory(model: ModelConfig, num_pages: int) -> int:
    return num_pages * model.num_layers * 2 * model.num_kv_heads * 16 * model.head_dim * 2


def set_free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (size, 2 * size))


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2", "qwen3"])
def test_parameters_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = write_model(tmp_path, name)
    assert num_parameters(read_config(tmp_path)) == theirs.num_parameters()


@pytest.mark.parametrize(
    ("shape", "free", "rest"),
    [("llama-8b", 24 * GIB, 2.4 * GIB), ("llama-8b", 80 * GIB, 8 * GIB), ("llama-8b", 141 * GIB, 14.1 * GIB),
     ("qwen3-0.6b", 8 * GIB, 2 * GIB)],
)  # fmt: skip
def test_weights_and_pages_leave_a_tenth_of_a_gpu_or_two_gibibytes(
    shape: str, free: int, rest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, free)
    model = model_of(tmp_path, shape)
    left = free - 2 * num_parameters(model) - memory(model, pages(model))
    assert rest - 1 <= left < rest + memory(model, 1)


def test_a_workspace_is_no_larger_than_sequences_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 24 * GIB)
    model = model_of(tmp_path, "llama-8b")
    alone = pages(model, max_len=131072)
    assert 20_000 < alone * 16 < 131072
    beside = pages(model, max_len=131072, workspace=33280)
    taken = memory(model, alone - beside)
    assert abs(taken - alone * 16 * 33280) <= memory(model, 1)  # to a page


def test_a_model_too_large_for_a_gpu_is_refused_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 16 * GIB)
    model = model_of(tmp_path, "llama-8b")
    with pytest.raises(UnsupportedModel, match=r"take 16\.1 GB, and cuda has 17\.2 GB free"):
        pages(model)


def test_what_is_configured_is_not_questioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 0)
    model = model_of(tmp_path, "tiny")
    assert pages(model, num_pages=7) == 7
    assert memory(model, pages(model, kv_memory="1GiB")) == pytest.approx(GIB, rel=0.001)
    assert pages(model, kv_memory=1, max_len=320) == 21  # one sequence of the longest kind, and one page more


def test_a_cpu_gives_at_most_a_gibibyte(tmp_path: Path) -> None:
    model = model_of(tmp_path, "tiny")
    assert 0 < memory(model, pages(model, device="cpu")) <= GIB
