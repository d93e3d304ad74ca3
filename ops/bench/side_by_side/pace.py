"""How long a step of a timed engine takes: a fixed part, one for each prefill token, one for each decode."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Final, Self

VARIABLE: Final = "OCTAVO_TIMED_PACE"
"""Environment variable by which an engine is told."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in milliseconds."""

    step_ms: float
    prefill_ms: float
    decode_ms: float

    @classmethod
    def read(cls, text: str) -> Self:
        """Read STEP:PREFILL:DECODE.

        Raises:
            ValueError: these are not three numbers.
        """
        step, prefill, decode = map(float, text.split(":"))
        return cls(step, prefill, decode)

    def __str__(self) -> str:
        return ":".join(f"{value:g}" for value in astuple(self))

    def step_s(self, num_prefill: int, num_decodes: int) -> float:
        """Return the seconds of a step with so many prefill tokens and decodes."""
        return 1e-3 * (self.step_ms + self.prefill_ms * num_prefill + self.decode_ms * num_decodes)
