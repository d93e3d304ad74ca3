"""Fingerprints of a model directory. Router and engine compute them alike: equal fingerprints mean equal tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

REVISION_HEX_CHARS = 16
_LENGTH_BYTES = 8
_EDGE_BYTES = 1 << 20
_MAX_HEADER_BYTES = 100_000_000  # the limit that the safetensors format sets itself


def tokenizer_revision(directory: Path) -> str:
    """Return 16 hex digits that name the tokenizer of a model directory: SHA-256 over the bytes of tokenizer.json.

    Raises:
        FileNotFoundError: the directory has no tokenizer.json.
    """
    return hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()[:REVISION_HEX_CHARS]


def model_revision(directory: Path) -> str:
    """Return 16 hex digits that name the weights and configuration of a model directory.

    Reading every weight would take longer than serving the first request. So the digest covers config.json and, of each
    safetensors file in the order of names, its name, its size, its header (names, types, shapes and offsets of all
    tensors) and the first and last MiB of its data.

    Raises:
        FileNotFoundError: the directory has no config.json.
        ValueError: a safetensors file is cut short or its header is impossible.
    """
    digest = hashlib.sha256(b"octavo.model.v1")
    _add(digest, (directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors"), key=lambda each: each.name):
        size = path.stat().st_size
        _add(digest, path.name.encode())
        _add(digest, size.to_bytes(8, "little"))
        with path.open("rb") as file:
            header = _header(file, path, size)
            _add(digest, header)
            _add(digest, file.read(_EDGE_BYTES))
            file.seek(max(len(header), size - _EDGE_BYTES))
            _add(digest, file.read(_EDGE_BYTES))
    return digest.hexdigest()[:REVISION_HEX_CHARS]


def _header(file: BinaryIO, path: Path, size: int) -> bytes:
    prefix = file.read(_LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise ValueError(f"{path.name} is not a whole safetensors file; fetch it again")
    return prefix + file.read(length)


def _add(digest: hashlib._Hash, field: bytes) -> None:
    # Length-prefixed, so that no two different lists of fields give the same bytes.
    digest.update(len(field).to_bytes(8, "little"))
    digest.update(field)
