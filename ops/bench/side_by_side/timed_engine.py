"""A whole engine process with the timed core."""

from __future__ import annotations

import sys
from pathlib import Path

from octavo_engine.__main__ import main

if __name__ == "__main__":
    sys.exit(main(core_command=(sys.executable, str(Path(__file__).with_name("timed_core.py")))))
