"""The tokenizer's files as one ZIP archive, for a gateway that has no model directory of its own."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
    "vocab.json",
    "merges.txt",
)
"""What may leave the model directory; anything else stays, weights above all."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class TokenizerArchive:
    """A ZIP archive and its SHA-256 in hex. Equal files give equal bytes."""

    content: bytes
    sha256: str

    @classmethod
    def of(cls, directory: Path) -> TokenizerArchive:
        """Return the archive of a model directory. Raises OSError if a file cannot be read."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in TOKENIZER_FILES:
                if (directory / name).is_file():
                    entry = zipfile.ZipInfo(name, _EPOCH)  # without the time of writing
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, (directory / name).read_bytes())
        content = buffer.getvalue()
        return cls(content, hashlib.sha256(content).hexdigest())
