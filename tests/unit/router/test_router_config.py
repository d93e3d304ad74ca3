from __future__ import annotations

import pytest
from octavo.settings import ConfigError
from octavo_router.config import load_config
from octavo_router.fleet import StaticEngine


def test_engine_without_a_port_is_refused():
    with pytest.raises(ConfigError) as caught:
        load_config(["--engines", "e1=here"], {})
    assert caught.value.problems[0].startswith("flag:--engines: must be host:port")


def test_engines_are_addresses_with_or_without_a_name(tmp_path):
    file = tmp_path / "router.toml"
    file.write_text('engines = ["e1=127.0.0.1:7100", "localhost:7200"]\n')
    wanted = [StaticEngine("127.0.0.1:7100", "e1"), StaticEngine("localhost:7200")]
    assert load_config(["--config", str(file)], {}).static_engines == wanted
    assert load_config(["--engines", "e1=127.0.0.1:7100, localhost:7200"], {}).static_engines == wanted
    assert load_config([], {}).static_engines == []
