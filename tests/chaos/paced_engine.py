"""A whole engine process with the paced core: `python tests/chaos/paced_engine.py --listen ...`."""

from __future__ import annotations

import sys
from pathlib import Path

from octavo_engine.__main__ import main

PACED_CORE = (sys.executable, str(Path(__file__).with_name("paced_core.py")))

if __name__ == "__main__":
    sys.exit(main(core_command=PACED_CORE))
