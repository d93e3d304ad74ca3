from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
from octavo_engine.messages import Cancel, Command, Credit, Progress, Report, Shutdown
from octavo_engine.pipe import HEADER, CorePipe, FrontGone, body_length, frame


@pytest.fixture
def ends() -> Iterator[tuple[CorePipe, socket.socket]]:
    core, front = socket.socketpair()
    pipe = CorePipe(core, max_unsent_bytes=1000)
    yield pipe, front
    pipe.close()
    front.close()


def test_commands_arrive_whole_however_the_bytes_are_cut(ends: tuple[CorePipe, socket.socket]) -> None:
    pipe, front = ends
    commands: list[Command] = [Cancel(1), Credit(2, 30), Cancel(3)]
    received: list[Command] = []
    for byte in b"".join(frame(command) for command in commands):
        front.send(bytes([byte]))
        received += pipe.poll()

    assert received == commands


def test_poll_returns_at_once_when_nothing_has_arrived(ends: tuple[CorePipe, socket.socket]) -> None:
    assert ends[0].poll() == []


def test_wait_returns_when_its_time_is_over(ends: tuple[CorePipe, socket.socket]) -> None:
    assert ends[0].wait(0.001) == []


def test_wait_returns_what_arrives(ends: tuple[CorePipe, socket.socket]) -> None:
    pipe, front = ends
    timer = threading.Timer(0.01, front.send, [frame(Cancel(7))])
    timer.start()

    assert pipe.wait(None) == [Cancel(7)]
    timer.join()


def test_reports_that_the_front_has_not_read_are_kept_in_order(ends: tuple[CorePipe, socket.socket]) -> None:
    pipe, front = ends
    reports = [Progress("x" * 1000, index) for index in range(1000)]
    reading = threading.Thread(target=lambda: received.extend(_read(front, len(reports))))
    received: list[Report] = []
    reading.start()
    for report in reports:
        pipe.send(report)
    pipe.flush()
    reading.join()

    assert received == reports


def test_a_front_that_is_gone_is_noticed_when_reading_and_when_writing(ends: tuple[CorePipe, socket.socket]) -> None:
    pipe, front = ends
    front.close()

    with pytest.raises(FrontGone):
        pipe.poll()
    with pytest.raises(FrontGone):
        pipe.send(Progress("x", 0))


def test_the_last_words_of_a_front_are_heard_before_it_is_missed(ends: tuple[CorePipe, socket.socket]) -> None:
    pipe, front = ends
    front.send(frame(Shutdown()))
    front.close()

    assert pipe.poll() == [Shutdown()]
    with pytest.raises(FrontGone):
        pipe.poll()


@pytest.mark.parametrize("length", [0, 1 << 31])
def test_an_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="frame of"):
        body_length(HEADER.pack(length))


def _read(front: socket.socket, num_reports: int) -> list[Report]:
    decoder = msgspec.msgpack.Decoder(Report)
    with front.makefile("rb") as stream:
        return [decoder.decode(stream.read(body_length(stream.read(HEADER.size)))) for _ in range(num_reports)]
