from __future__ import annotations

import pytest
from octavo_router.config import ConfigError, load_config
from octavo_router.fleet import StaticEngine


def test_flag_wins_over_environment_and_environment_over_file(tmp_path):
    file = tmp_path / "router.toml"
    file.write_text('max_in_flight = 1\nmax_moves = 1\ntokenizer_threads = 1\nlog_level = "debug"\n')
    config = load_config(
        ["--config", str(file), "--max-in-flight", "3"],
        {"OCTAVO_ROUTER_MAX_IN_FLIGHT": "2", "OCTAVO_ROUTER_MAX_MOVES": "2"},
    )
    assert (config.max_in_flight, config.max_moves, config.tokenizer_threads) == (3, 2, 1)
    assert config.log_level == "debug"


@pytest.mark.parametrize(
    ("arguments", "environ", "problem"),
    [
        (["--nonsense", "1"], {}, "flag:--nonsense: no such setting"),
        ([], {"OCTAVO_ROUTER_NONSENSE": "1"}, "environment:OCTAVO_ROUTER_NONSENSE: no such setting"),
        (["--listen", "nowhere"], {}, "flag:--listen: must be host:port"),
        (["--engines", "e1=here"], {}, "flag:--engines: must be host:port"),
        ([], {"OCTAVO_ROUTER_MAX_MOVES": "many"}, "environment:OCTAVO_ROUTER_MAX_MOVES: "),
        (["--config", "/nowhere.toml"], {}, "/nowhere.toml: cannot be read"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused_by_name(arguments, environ, problem):
    with pytest.raises(ConfigError) as caught:
        load_config(arguments, environ)
    assert caught.value.problems[0].startswith(problem)


def test_unknown_key_in_the_file_names_file_and_key(tmp_path):
    file = tmp_path / "router.toml"
    file.write_text("max_moved = 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(["--config", str(file)], {})
    assert caught.value.problems == (f"{file}:max_moved: no such setting",)


def test_engines_are_addresses_with_or_without_a_name(tmp_path):
    file = tmp_path / "router.toml"
    file.write_text('engines = ["e1=127.0.0.1:7100", "localhost:7200"]\n')
    wanted = [StaticEngine("127.0.0.1:7100", "e1"), StaticEngine("localhost:7200")]
    assert load_config(["--config", str(file)], {}).static_engines == wanted
    assert load_config(["--engines", "e1=127.0.0.1:7100, localhost:7200"], {}).static_engines == wanted
    assert load_config([], {}).static_engines == []


def test_trace_endpoint_of_the_otel_variable_is_used():
    assert load_config([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4317"}).otlp_endpoint == "http://jaeger:4317"


def test_standard_input_is_watched_only_if_asked_for():
    assert not load_config([], {}).exit_with_stdin
    assert load_config(["--exit-with-stdin"], {}).exit_with_stdin
