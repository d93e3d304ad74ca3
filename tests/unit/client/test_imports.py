from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ["torch", "transformers", "triton", "numpy", "gguf", "tokenizers", "octavo_engine", "octavo_router"]


def test_the_command_line_starts_without_heavy_packages() -> None:
    probe = f"import sys, json, octavo_client.cli.main; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
