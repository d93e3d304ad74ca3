from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import pkgutil, sys
import octavo_router
for module in pkgutil.iter_modules(octavo_router.__path__):
    __import__(f"octavo_router.{module.name}")
heavy = {"torch", "triton", "transformers", "numpy", "octavo_engine", "octavo_kernels"} & sys.modules.keys()
print(",".join(sorted(heavy)))
"""


def test_router_imports_neither_torch_nor_transformers():
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
