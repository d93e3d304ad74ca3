"""A whole engine process with the fake core: `python tests/support/fake_core_engine.py --listen ...`."""

from __future__ import annotations

import sys
from pathlib import Path

from octavo_engine.__main__ import main

FAKE_CORE = (sys.executable, str(Path(__file__).with_name("fake_core.py")))

if __name__ == "__main__":
    sys.exit(main(core_command=FAKE_CORE))
