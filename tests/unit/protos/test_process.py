from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from octavo.process import StopRequest, tell_problems, write_ready_file


async def test_a_second_signal_hurries() -> None:
    stop = StopRequest()
    stop.watch_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(stop.asked.wait(), 10)
    assert not stop.hurried.is_set()

    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(stop.hurried.wait(), 10)


@pytest.mark.parametrize("hurry", [False, True])
async def test_the_end_of_standard_input_stops(hurry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [b"said", b""]
    monkeypatch.setattr("octavo.process.os.read", lambda _number, _size: pieces.pop(0))
    stop = StopRequest()
    stop.watch_stdin(hurry=hurry)
    await asyncio.wait_for(stop.asked.wait(), 10)

    assert stop.hurried.is_set() == hurry
    assert not pieces


def test_the_ready_file_holds_addresses_and_process_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    write_ready_file(path, {"address": "127.0.0.1:1"})

    assert json.loads(path.read_text(encoding="utf-8")) == {"address": "127.0.0.1:1", "pid": os.getpid()}
    assert list(tmp_path.iterdir()) == [path]


def test_problems_are_told_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    tell_problems("lamp", ["flag:--a: no", "b: no"])

    assert capsys.readouterr().err == "lamp: flag:--a: no\nlamp: b: no\n"
