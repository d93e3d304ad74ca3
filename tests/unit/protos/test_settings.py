from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from octavo.settings import Address, ConfigError, RedisUrl, Settings, load, split_address
from pydantic import Field


class Lamp(Settings):
    environment_prefix: ClassVar[str] = "LAMP_"

    name: str = Field("lamp", description="what it is called, 100% free text")
    listen: Address = Field("127.0.0.1:1", description="where it listens")
    redis_url: RedisUrl | None = Field(None, description="its bus")
    watts: int = Field(5, ge=1, description="power")
    hours: int = Field(1, description="time")
    colour: Literal["red", "green"] = Field("red", description="light")
    dimmed: bool = Field(False, description="less light")


def lamp(*arguments: str, **environ: str) -> Lamp:
    return load(Lamp, program="lamp", description="Shine.", arguments=arguments, environ=environ)


def test_a_flag_wins_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lamp.toml"
    file.write_text('watts = 1\nhours = 1\nname = "from-file"\n')

    made = lamp("--config", str(file), "--watts", "3", LAMP_WATTS="2", LAMP_HOURS="2")

    assert (made.watts, made.hours, made.name) == (3, 2, "from-file")


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lamp.toml"
    file.write_text("watts = 7\n")

    assert lamp(LAMP_CONFIG=str(file)).watts == 7


def test_a_switch_is_turned_on_and_off_again() -> None:
    assert lamp("--dimmed").dimmed
    assert not lamp("--no-dimmed", LAMP_DIMMED="true").dimmed


def test_an_empty_variable_counts_as_unset() -> None:
    assert lamp(LAMP_REDIS_URL="").redis_url is None


def test_a_variable_of_another_process_is_none_of_ours() -> None:
    assert lamp(OCTAVO_ROUTER_NONSENSE="1").watts == 5


def test_the_standard_variable_names_the_trace_endpoint_unless_ours_does() -> None:
    standard = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317"}

    assert lamp(**standard).otlp_endpoint == "http://a:4317"
    assert lamp("--otlp-endpoint", "http://b:4317", **standard).otlp_endpoint == "http://b:4317"


@pytest.mark.parametrize(
    ("arguments", "environ", "problem"),
    [
        (["--nope", "1"], {}, "flag:--nope: no such setting"),
        (["--watt", "1"], {}, "flag:--watt: no such setting"),
        (["--watts", "many"], {}, "flag:--watts: Input should be a valid integer"),
        (["--watts"], {}, "flag:--watts: expected one argument"),
        (["--colour", "blue"], {}, "flag:--colour: Input should be 'red' or 'green'"),
        (["--listen", "7100"], {}, "flag:--listen: must be host:port"),
        (["--listen", "host:70000"], {}, "flag:--listen: must be host:port"),
        (["--redis-url", "127.0.0.1:6379"], {}, "flag:--redis-url: must start with redis://"),
        ([], {"LAMP_WATS": "1"}, "environment:LAMP_WATS: no such setting"),
        ([], {"LAMP_WATTS": "0"}, "environment:LAMP_WATTS: Input should be greater than or equal to 1"),
        (["--config", "/nowhere.toml"], {}, "/nowhere.toml: cannot be read: No such file"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(
    arguments: list[str], environ: Mapping[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        lamp(*arguments, **environ)

    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].startswith(problem)


def test_every_wrong_key_of_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lamp.toml"
    file.write_text('wats = 1\nwatts = 0\nlisten = "127.0.0.1:1"\n')

    with pytest.raises(ConfigError) as refused:
        lamp("--config", str(file))

    assert sorted(refused.value.problems) == [
        f"{file}:wats: no such setting",
        f"{file}:watts: Input should be greater than or equal to 1",
    ]


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lamp.toml"
    file.write_text("watts: 3")

    with pytest.raises(ConfigError, match="not TOML"):
        lamp("--config", str(file))


def test_help_tells_choices_and_defaults_with_the_process_s_own_settings_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        lamp("--help")

    told = " ".join(capsys.readouterr().out.split())
    assert "100% free text (default: lamp)" in told
    assert "light (red, green) (default: red)" in told
    assert told.index("--dimmed, --no-dimmed less light") < told.index("--exit-with-stdin, --no-exit-with-stdin stop")


def test_an_address_splits_at_its_last_colon() -> None:
    assert split_address("[::1]:7100") == ("[::1]", 7100)
