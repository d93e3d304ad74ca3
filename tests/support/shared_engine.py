"""One engine process for all tests that neither end it nor look at its log: starting one takes most of a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from support.engine_process import FAKE_CORE_ENGINE, FREE_PORTS


class Addresses(NamedTuple):
    """Where an engine listens."""

    engine: str
    admin: str


@contextmanager
def shared_engine(**environ: str) -> Iterator[Addresses]:
    """Yield the addresses of a serving engine with the fake core."""
    command = [
        *(sys.executable, str(FAKE_CORE_ENGINE), "--engine-id", "shared-engine", "--exit-with-stdin"),
        *FREE_PORTS,
        *("--log-form", "json"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = (json.loads(line) for line in process.stdout)
        listening = next(line for line in lines if line["event"] == "engine_listening")
        drain = threading.Thread(target=deque, args=(lines, 0))
        drain.start()
        yield Addresses(listening["address"], listening["admin_address"])
        process.stdin.close()
        drain.join()
