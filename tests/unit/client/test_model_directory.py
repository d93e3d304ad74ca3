from __future__ import annotations

from pathlib import Path

import pytest
from octavo.model_directory import ModelNotFound, cache_directory, resolve_model, served_name


def make_model(place: Path) -> Path:
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "tokenizer.json").write_text("{}")
    return place


@pytest.mark.parametrize("name", ["", "smollm2-135m-instruct"])
def test_the_default_model_is_found_in_the_cache(name: str, cache: Path) -> None:
    place = make_model(cache / "models" / "smollm2-135m-instruct")
    assert resolve_model(name) == place


def test_an_unprepared_default_model_names_the_command(cache: Path) -> None:
    del cache
    with pytest.raises(ModelNotFound, match="octavo model prepare"):
        resolve_model()


def test_a_directory_resolves_to_itself(tmp_path: Path) -> None:
    place = make_model(tmp_path / "mine")
    assert resolve_model(str(place)) == place


def test_a_directory_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match=r"lacks tokenizer\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["no-such-thing", "/nowhere/at/all", "a/b/c", "https://example.org/model", "../no-such-model"]
)
def test_other_names_are_refused_without_asking_the_network(name: str) -> None:
    with pytest.raises(ModelNotFound, match="no model"):
        resolve_model(name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OCTAVO_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/octavo")),
        ({}, Path.home() / ".cache/octavo"),
    ],
)
def test_the_cache_follows_the_environment(environment: dict[str, str], expected: Path) -> None:
    assert cache_directory(environment) == expected


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("", "smollm2-135m-instruct"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("/models/mine/", "mine"),
    ],
)
def test_requests_call_a_model_by_the_last_part_of_its_name(name: str, served: str) -> None:
    assert served_name(name) == served
