from __future__ import annotations

from pathlib import Path

import pytest
from octavo.settings import ConfigError
from octavo_engine.config import EngineConfig, load_config


def test_sizes_and_switches_are_written_as_people_write_them() -> None:
    config = load_config(["--kv-memory", "2GiB", "--exit-with-stdin"], {"OCTAVO_ENGINE_DTYPE": "float32"})

    assert config.kv_memory == 2 << 30
    assert config.exit_with_stdin
    assert config.dtype == "float32"


def test_the_core_reads_back_the_configuration_that_the_front_sends(tmp_path: Path) -> None:
    config = load_config(["--kv-memory", "1GiB", "--ready-file", str(tmp_path), "--redis-url", "redis://x"], {})

    assert EngineConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--max-sequences", "0"], "flag:--max-sequences: Input should be greater than or equal to 1"),
        (["--advertise", "7100"], "flag:--advertise: must be host:port"),
        (["--engine-id", "a b"], "flag:--engine-id: String should match"),
        (["--num-pages", "9", "--kv-memory", "1GiB"], "num_pages and kv_memory both size the page pool"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(arguments, {})

    assert len(refused.value.problems) == 1
    assert problem in refused.value.problems[0]


def test_a_cpu_takes_shorter_steps_unless_told_otherwise() -> None:
    assert EngineConfig().step_tokens("cpu") < EngineConfig().step_tokens("cuda")
    assert EngineConfig(max_step_tokens=7).step_tokens("cpu") == 7


def test_a_gpus_steps_beside_decodes_hold_half_of_the_largest_in_whole_tiles() -> None:
    budget = EngineConfig(max_step_tokens=8192).step_budget("cuda")
    for _ in range(20):
        budget.observe(0.0001 + 1e-6 * 4000 + 1e-5 * 96, num_prefill_tokens=4000, num_decodes=96)
        budget.observe(0.0001 + 1e-5 * 96, num_prefill_tokens=0, num_decodes=96)
    assert budget.prefill_room(96) + 96 == 4096
    assert budget.prefill_room(0) == 8192


def test_where_decodes_take_long_a_gpu_gives_prompts_twice_their_time_and_a_cpu_once() -> None:
    rooms = {}
    for device in ("cuda", "cpu"):
        budget = EngineConfig(max_step_tokens=8192, itl_target_ms=10).step_budget(device)
        for prefill in (0, 512, 1024) * 20:
            budget.observe(0.02 + 2e-5 * prefill, num_prefill_tokens=prefill, num_decodes=256)
        rooms[device] = budget.prefill_room(256)
    assert rooms["cuda"] == pytest.approx(2 * 0.02 / 2e-5, rel=0.1)
    assert rooms["cpu"] == pytest.approx(0.02 / 2e-5, rel=0.1)
