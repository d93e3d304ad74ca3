from __future__ import annotations

from pathlib import Path

import pytest
from octavo_engine.config import ConfigError, EngineConfig, load_config, split_address


def test_a_flag_wins_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text('max_sequences = 1\nmax_waiting = 1\nengine_id = "from-file"\n')
    environ = {"OCTAVO_ENGINE_MAX_SEQUENCES": "2", "OCTAVO_ENGINE_MAX_WAITING": "2"}

    config = load_config(["--config", str(file), "--max-sequences", "3"], environ)

    assert (config.max_sequences, config.max_waiting, config.engine_id) == (3, 2, "from-file")


def test_sizes_and_switches_are_written_as_people_write_them() -> None:
    config = load_config(["--kv-memory", "2GiB", "--exit-with-stdin"], {"OCTAVO_ENGINE_DTYPE": "float32"})

    assert config.kv_memory == 2 << 30
    assert config.exit_with_stdin
    assert config.dtype == "float32"


def test_an_empty_variable_counts_as_unset() -> None:
    assert load_config([], {"OCTAVO_ENGINE_REDIS_URL": ""}).redis_url is None


def test_the_standard_variable_names_the_trace_endpoint_unless_ours_does() -> None:
    standard = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317"}

    assert load_config([], standard).otlp_endpoint == "http://a:4317"
    assert load_config(["--otlp-endpoint", "http://b:4317"], standard).otlp_endpoint == "http://b:4317"


def test_the_core_reads_back_the_configuration_that_the_front_sends(tmp_path: Path) -> None:
    config = load_config(["--kv-memory", "1GiB", "--ready-file", str(tmp_path), "--redis-url", "redis://x"], {})

    assert EngineConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("arguments", "environ", "problem"),
    [
        (["--nope", "1"], {}, "flag:--nope: no such setting"),
        (["--max-sequences", "many"], {}, "flag:--max-sequences: Input should be a valid integer"),
        (["--max-sequences", "0"], {}, "flag:--max-sequences: Input should be greater than or equal to 1"),
        (["--max-sequences"], {}, "flag:--max-sequences: expected one argument"),
        (["--listen", "7100"], {}, "flag:--listen: must be host:port"),
        (["--listen", "host:70000"], {}, "flag:--listen: must be host:port"),
        (["--redis-url", "127.0.0.1:6379"], {}, "flag:--redis-url: must start with redis://"),
        (["--engine-id", "a b"], {}, "flag:--engine-id: String should match"),
        ([], {"OCTAVO_ENGINE_MAX_SEQENCES": "1"}, "environment:OCTAVO_ENGINE_MAX_SEQENCES: no such setting"),
        (["--num-pages", "9", "--kv-memory", "1GiB"], {}, "num_pages and kv_memory both size the page pool"),
        (["--config", "/nowhere.toml"], {}, "/nowhere.toml: cannot be read: No such file"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(arguments: list[str], environ: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(arguments, environ)

    assert len(refused.value.problems) == 1
    assert problem in refused.value.problems[0]


def test_every_wrong_key_of_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text('max_sequence = 1\nwatermark = 2.0\nlisten = "127.0.0.1:1"\n')

    with pytest.raises(ConfigError) as refused:
        load_config(["--config", str(file)], {})

    assert sorted(refused.value.problems) == [
        f"{file}:max_sequence: no such setting",
        f"{file}:watermark: Input should be less than or equal to 0.9",
    ]


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text("max_sequences: 3")

    with pytest.raises(ConfigError, match="not TOML"):
        load_config(["--config", str(file)], {})


def test_a_cpu_takes_shorter_steps_unless_told_otherwise() -> None:
    assert EngineConfig().step_tokens("cpu") < EngineConfig().step_tokens("cuda")
    assert EngineConfig(max_step_tokens=7).step_tokens("cpu") == 7


def test_an_address_splits_at_its_last_colon() -> None:
    assert split_address("[::1]:7100") == ("[::1]", 7100)
