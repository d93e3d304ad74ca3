"""Runs a command that must not outlive its supervisor: when standard input ends, the command is stopped.

Octavo's own processes do this themselves (`--exit-with-stdin`). This script does it for programs that cannot, such as
the embedded Redis server. It is run by path, needs the standard library only, and ends with the command's own status.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

GRACE_S = 2.0


def main(command: list[str]) -> int:
    """Run `command` until it ends, standard input ends, or SIGTERM comes; return its exit status."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda _number, _frame: child.terminate())
    # A daemon thread: it may sit in read() for ever, and must not keep this process when the command ends.
    threading.Thread(target=_stop_at_end_of_input, args=(child,), daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


def _stop_at_end_of_input(child: subprocess.Popen[bytes]) -> None:
    # Not through sys.stdin: a thread that holds its lock at exit would crash the interpreter.
    while os.read(0, 4096):
        pass
    child.terminate()
    try:
        child.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
