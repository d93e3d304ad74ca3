"""Compile launchers for an NVIDIA architecture without a GPU, and report what the compiler made of each kernel.

`compiling()` puts a driver in place that claims a device of that architecture. Launchers then run unchanged on CPU
tensors: Triton specializes the arguments as always and compiles down to a cubin. Where a driver would load the cubin,
this one takes it apart with the `cuobjdump` of the Triton wheel; where it would launch, it only takes notes.

    with compiling() as kernels:
        paged_decode(q, k, v, ...)
    assert kernels[0].spill_bytes == 0

The process must not interpret kernels (TRITON_INTERPRET), and no output is ever written. Counts are static: they say
what is in the program, not how often it runs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver as triton_driver

# Shared memory that one program may have on compute capability 9.0: 227 KiB.
MAX_SHARED_BYTES = 232448

# Packed and launch metadata and two hooks stand before a kernel's own arguments.
_NOT_OF_THE_KERNEL = 4

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]+)", re.MULTILINE)


@dataclass(frozen=True)
class CompiledKernel:
    """One launch: the kernel's resources and its instructions by mnemonic (HGMMA, LDGSTS, LDL, ...)."""

    name: str
    registers: int  # a thread
    spill_bytes: int  # a thread: Triton kernels use the stack for nothing else
    shared_bytes: int  # a program
    instructions: Counter[str]
    narrow_loads: int  # global loads of at most 4 bytes a thread
    warps: int = 0
    stages: int = 0
    grid: tuple[int, int, int] = (0, 0, 0)
    arguments: tuple[str, ...] = ()


def take_apart(name: str, cubin: bytes, shared_bytes: int) -> CompiledKernel:
    """Read resources and instructions out of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dump = _dump(file.name)
    opcodes = _INSTRUCTION.findall(dump)
    loads = [op.split(".") for op in opcodes if op.startswith(("LDG.", "LDGSTS."))]
    return CompiledKernel(
        name=name,
        registers=max(map(int, re.findall(r"\bREG:(\d+)", dump))),
        spill_bytes=max(map(int, re.findall(r"\bSTACK:(\d+)", dump))),
        shared_bytes=shared_bytes,
        instructions=Counter(op.split(".")[0] for op in opcodes),
        narrow_loads=sum("64" not in parts and "128" not in parts for parts in loads),
    )


@contextmanager
def compiling(sm: int = 90) -> Iterator[list[CompiledKernel]]:
    """Compile instead of launch inside the block; yields the list that grows by one entry a launch."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels would be interpreted, not compiled")
    before = triton_driver._active
    standin = _DriverWithoutDevice(sm)
    triton_driver.set_active(standin)
    try:
        yield standin.launches
    finally:
        triton_driver.set_active(before)


def _told(argument: Any) -> str:
    """Tell an argument of a launch apart from others: tensors by what they are, not by where this call has put them."""
    if isinstance(argument, torch.Tensor):
        return f"{argument.dtype} {tuple(argument.shape)} {argument.stride()}"
    if hasattr(argument, "block_shape"):
        return f"described {_told(argument.base)} {argument.block_shape}"
    return repr(argument)


def _dump(path: str) -> str:
    command = [_CUOBJDUMP, "--dump-resource-usage", "--dump-sass", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class _DriverWithoutDevice(DriverBase):
    """The part of Triton's driver interface that compiling and launching a kernel touches."""

    def __init__(self, sm: int) -> None:
        self.sm = sm
        self.launches: list[CompiledKernel] = []
        self.utils = self

        def make_launcher(_source: Any, metadata: Any) -> Any:
            def launch(gx: int, gy: int, gz: int, _stream: int, kernel: CompiledKernel, *args: Any) -> None:
                noted = replace(
                    kernel,
                    warps=metadata.num_warps,
                    stages=metadata.num_stages,
                    grid=(gx, gy, gz),
                    arguments=tuple(map(_told, args[_NOT_OF_THE_KERNEL:])),
                )
                self.launches.append(noted)

            return launch

        self.launcher_cls = make_launcher

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {
            "max_shared_mem": MAX_SHARED_BYTES,
            "max_num_regs": 65536,
            "multiprocessor_count": 132,
            "warpSize": 32,
        }

    def load_binary(
        self, name: str, cubin: bytes, shared: int, _device: int
    ) -> tuple[int, CompiledKernel, int, int, int]:
        kernel = take_apart(name, cubin, shared)
        most_threads = 1024
        return 0, kernel, kernel.registers, kernel.spill_bytes, most_threads

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_device(self) -> int:
        return -self.sm - id(self)  # compiled kernels are cached by device: share none with a real one

    def set_current_device(self, _device: int) -> None:
        pass

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("kernels are not tuned at run time")
