"""What two engines must have in common for one to go on with what the other began."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from functools import lru_cache

from octavo.v1 import engine_pb2


@dataclass(frozen=True, slots=True)
class EngineKind:
    """All that an engine says about itself and that its tokens may depend on. Only equal kinds give equal tokens."""

    model_revision: str
    tokenizer_revision: str
    page_size: int
    backend: str
    device: str
    dtype: str
    numerics: str

    def __str__(self) -> str:
        return (
            f"model revision {self.model_revision}, {self.backend} on {self.device}, {self.dtype}, {self.numerics}, "
            f"pages of {self.page_size}"
        )

    @property
    def fingerprint(self) -> str:
        """32 hex digits that stand for the kind outside of this process: equal in every router."""
        return _fingerprint(self)


@lru_cache(maxsize=64)  # every stream says it with its first token, and a fleet has a few kinds
def _fingerprint(kind: EngineKind) -> str:
    return hashlib.sha256(repr(astuple(kind)).encode()).hexdigest()[:32]


def kind_of(info: engine_pb2.EngineInfo) -> EngineKind:
    """Return the kind of an engine."""
    return EngineKind(
        model_revision=info.model.revision,
        tokenizer_revision=info.model.tokenizer_revision,
        page_size=info.model.page_size,
        backend=info.backend,
        device=info.device,
        dtype=info.dtype,
        numerics=info.numerics,
    )
