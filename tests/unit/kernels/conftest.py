from __future__ import annotations

import pytest
import torch
from octavo_kernels.launch import interpreted
from octavo_kernels.norm import _rmsnorm_rows


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Triton's interpreter reads loop bounds out of one-element arrays, which numpy warns about.
    mark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
    for item in items:
        item.add_marker(mark)


@pytest.fixture(autouse=True, scope="session")
def kernels_can_run() -> None:
    """Kernels were defined for the interpreter, or for a GPU that is there: anything else is a broken setup."""
    if not torch.cuda.is_available():
        assert interpreted(), "no GPU: set TRITON_INTERPRET=1 before octavo_kernels is imported"
        assert type(_rmsnorm_rows).__name__ == "InterpretedFunction", "TRITON_INTERPRET was set too late"


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(20)
