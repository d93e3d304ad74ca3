"""Takes the place of an engine or a router under a supervisor: takes the same flags, and misbehaves as told.

Flags of its own: --die STATUS (after a last word), --deaf (ignores SIGTERM), --never-ready, --grandchild (starts one).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--exit-with-stdin", action="store_true", required=True)
    parser.add_argument("--die", type=int)
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--grandchild", action="store_true")
    flags, others = parser.parse_known_args()
    say(json.dumps({"event": "model_loading", "stage": "load weights", "done": 0.5}))
    if flags.die is not None:
        say("last words")
        sys.exit(flags.die)
    if flags.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) if flags.grandchild else None
    if not flags.never_ready:
        ready = {
            "address": flags.listen.replace(":0", f":{os.getpid()}"),
            "admin_address": "127.0.0.1:2",
            "metrics_address": "127.0.0.1:3",
            "pid": grandchild.pid if grandchild else os.getpid(),
            "flags": others,
            "redis_urls": {name: value for name, value in os.environ.items() if name.endswith("_REDIS_URL")},
        }
        scratch = flags.ready_file.with_suffix(".new")
        scratch.write_text(json.dumps(ready))
        scratch.rename(flags.ready_file)
    threading.Thread(target=exit_with_stdin, daemon=True).start()
    signal.pause()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def exit_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
