"""Host memory that a device copies from and to without making the host wait."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from octavo_engine.batch import Array
from octavo_engine.sequence import Sampled

_ALIGNMENT: Final = 16  # kernels are compiled for pointers that are multiples of 16 bytes


def pinned(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Return host memory [num_bytes] uint8, pinned if the device is a GPU.

    Torch's allocator gives it to nobody else before the copies that were queued on it are done.
    """
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


class Upload:
    """Columns of one step, gathered on the host and sent in one copy.

    Args:
        buffer: uint8 on the device; the columns of the step before are overwritten, in the order of the stream.
    """

    def __init__(self, buffer: torch.Tensor) -> None:
        self._device_bytes = buffer
        self._host = pinned(buffer.numel(), buffer.device)
        self._host_bytes: Array = self._host.numpy()
        self._used = 0

    def put(self, array: Array) -> torch.Tensor:
        """Take a column; return it as it will be on the device once `send` is called.

        Raises:
            ValueError: the columns do not fit.
        """
        start, stop = self._used, self._used + array.nbytes
        if stop > len(self._host_bytes):
            raise ValueError(f"a step's columns need more than {len(self._host_bytes)} bytes")
        self._host_bytes[start:stop] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._used = -(-stop // _ALIGNMENT) * _ALIGNMENT
        dtype = torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
        return self._device_bytes[start:stop].view(dtype).view(array.shape)

    def send(self) -> None:
        """Queue the copy."""
        self._device_bytes[: self._used].copy_(self._host[: self._used], non_blocking=True)


class Download:
    """Sampled tokens on their way to the host.

    Args:
        ids: [B] int64 on the device.
        logprobs: [B] float32 on the device.
        count: leading entries that are asked for.
    """

    def __init__(self, ids: torch.Tensor, logprobs: torch.Tensor, count: int) -> None:
        device = ids.device
        host = pinned(12 * count, device)
        self._ids, self._logprobs = host[: 8 * count].view(torch.int64), host[8 * count :].view(torch.float32)
        self._ids.copy_(ids[:count], non_blocking=True)
        self._logprobs.copy_(logprobs[:count], non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def result(self) -> Sampled:
        """Wait for the step and return its tokens."""
        if self._event is not None:
            self._event.synchronize()
        return Sampled(token_ids=self._ids.tolist(), logprobs=self._logprobs.tolist())
