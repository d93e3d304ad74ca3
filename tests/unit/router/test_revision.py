from __future__ import annotations

import hashlib
import json

import pytest
from octavo.revision import model_revision, tokenizer_revision

MIB = 1 << 20


def write_weights(path, data, header=None):
    text = json.dumps(header or {"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_bytes(b"abc")
    write_weights(tmp_path / "model.safetensors", bytes(3 * MIB))
    return tmp_path


def test_tokenizer_revision_is_the_hash_of_the_file(directory):
    assert tokenizer_revision(directory) == hashlib.sha256(b"abc").hexdigest()[:16]


def test_revision_stays_while_nothing_changes(directory):
    assert model_revision(directory) == model_revision(directory)
    assert len(model_revision(directory)) == 16


def change_config(directory):
    (directory / "config.json").write_text('{"a": 1}')


def change_header(directory):
    write_weights(directory / "model.safetensors", bytes(3 * MIB), {"v": {}})


def change_first_byte(directory):
    write_weights(directory / "model.safetensors", b"\x01" + bytes(3 * MIB - 1))


def change_last_byte(directory):
    write_weights(directory / "model.safetensors", bytes(3 * MIB - 1) + b"\x01")


def change_size(directory):
    write_weights(directory / "model.safetensors", bytes(3 * MIB + 1))


def change_name(directory):
    (directory / "model.safetensors").rename(directory / "weights.safetensors")


def add_file(directory):
    write_weights(directory / "more.safetensors", b"x")


@pytest.mark.parametrize(
    "change",
    [change_config, change_header, change_first_byte, change_last_byte, change_size, change_name, add_file],
)
def test_every_change_changes_the_revision(change, directory):
    before = model_revision(directory)
    change(directory)
    assert model_revision(directory) != before


def test_directory_without_weights_has_a_revision(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert len(model_revision(tmp_path)) == 16


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (100).to_bytes(8, "little") + b"{}"])
def test_file_that_is_no_safetensors_is_refused(content, directory):
    (directory / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        model_revision(directory)
