from __future__ import annotations

import os
import socket
from collections import defaultdict
from pathlib import Path

import pytest
from octavo_client.cli.console import Failed
from octavo_client.cli.local import free_port, stack_options, visible_gpus
from octavo_client.cli.up import Restarts, only_one
from octavo_client.running import RunningStack, read_running, remove_running, write_running
from octavo_client.stack_options import Endpoints, StackOptions


def test_a_taken_port_is_skipped() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        assert free_port(first) > first


@pytest.mark.parametrize(
    ("environment", "devices", "expected"),
    [
        ({}, [], ()),
        ({}, ["nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"], ("0", "1", "2")),
        ({"CUDA_VISIBLE_DEVICES": "3,5"}, ["nvidia0"], ("3", "5")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["nvidia0"], ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ["nvidia0"], ()),
    ],
)
def test_gpus_are_counted_without_cuda(
    environment: dict[str, str], devices: list[str], expected: tuple[str, ...], tmp_path: Path
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    assert visible_gpus(environment, tmp_path) == expected


def test_cores_are_shared_out_between_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    options = stack_options(state_directory=tmp_path, model="m", model_name="n", engines=None, threads=None)
    assert (options.num_engines, options.threads) == (2, 4)
    crowded = stack_options(state_directory=tmp_path, model="m", model_name="n", engines=16, threads=None)
    assert crowded.threads == 1


def test_each_gpu_gets_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    options = stack_options(state_directory=tmp_path, model="m", model_name="n", engines=None, threads=None)
    assert (options.num_engines, options.threads) == (2, None)
    assert [options.engine_environment(index, "redis://r")["CUDA_VISIBLE_DEVICES"] for index in (1, 2, 3)] == [
        "4",
        "6",
        "4",
    ]


def test_a_router_that_comes_back_asks_for_its_old_addresses(tmp_path: Path) -> None:
    options = StackOptions(state_directory=tmp_path)
    known = Endpoints(address="127.0.0.1:11", admin_address="127.0.0.1:12", metrics_address="127.0.0.1:13", pid=1)
    fresh, again = options.router_line(None), options.router_line(known)
    assert fresh[fresh.index("--listen") + 1] == "127.0.0.1:0"
    assert again[again.index("--listen") + 1] == "127.0.0.1:11"
    assert again[again.index("--admin-listen") + 1] == "127.0.0.1:12"


def test_children_have_the_password_of_redis_on_no_command_line(tmp_path: Path) -> None:
    url = "redis://:hunter2@r"
    options = StackOptions(state_directory=tmp_path, redis_url=url)
    assert not any("hunter2" in word for word in [*options.engine_line(1), *options.router_line(None)])
    assert options.engine_environment(1, url)["OCTAVO_ENGINE_REDIS_URL"] == url
    assert options.router_environment(url)["OCTAVO_ROUTER_REDIS_URL"] == url


def test_requests_get_less_than_the_time_until_sigkill(tmp_path: Path) -> None:
    line = StackOptions(state_directory=tmp_path, stop_grace_s=10).engine_line(1)
    assert 0 < float(line[line.index("--drain-grace-s") + 1]) < 10


def test_restarts_wait_longer_and_longer_and_then_end() -> None:
    restarts = Restarts(defaultdict(list))
    assert [restarts.delay_s("engine-1", float(now)) for now in range(6)] == [0, 1, 2, 4, 8, None]


def test_an_old_end_is_forgotten() -> None:
    restarts = Restarts(defaultdict(list))
    for now in range(5):
        restarts.delay_s("engine-1", float(now))
    assert restarts.delay_s("engine-2", 5.0) == 0
    assert restarts.delay_s("engine-1", 1000.0) == 0


def test_a_second_stack_in_the_same_place_is_refused(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(Failed, match="--state-dir"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


@pytest.fixture
def running() -> RunningStack:
    return RunningStack(
        pid=os.getpid(),
        router="127.0.0.1:1",
        router_admin="127.0.0.1:2",
        router_metrics="127.0.0.1:3",
        log_directory="/l",
    )


def test_a_running_stack_is_found_until_it_is_removed(tmp_path: Path, running: RunningStack) -> None:
    assert read_running(tmp_path) is None
    write_running(tmp_path, running)
    assert read_running(tmp_path) == running
    remove_running(tmp_path)
    assert read_running(tmp_path) is None


def test_the_record_of_a_dead_supervisor_does_not_count(tmp_path: Path, running: RunningStack) -> None:
    write_running(tmp_path, running)
    record = tmp_path / "stack.json"
    record.write_text(record.read_text().replace(str(os.getpid()), str(2**22 + 1)))
    assert read_running(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}', '{"pid": 1, "unknown": 2}'])
def test_a_broken_record_does_not_count(tmp_path: Path, content: str) -> None:
    (tmp_path / "stack.json").write_text(content)
    assert read_running(tmp_path) is None
