from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from octavo_client.doctor import (
    Requirement,
    State,
    check_disk,
    check_embedded_redis,
    check_memory,
    check_model,
    check_packages,
    check_port,
    check_python,
    check_redis,
    check_router,
    check_torch,
    examine,
    requirements,
    torch_finding,
)


def test_requirements_are_read_from_the_package_metadata() -> None:
    lines = [
        "grpcio>=1.76",
        "types-grpcio",
        'torch>=2.10; extra == "engine"',
        'octavo-serve[router,engine]; extra == "local"',
        "gguf>=0.17; extra == 'local'",
        'ruff>=0.14; extra == "dev"',
    ]
    assert requirements(lines) == [
        Requirement("grpcio", "1.76", ""),
        Requirement("types-grpcio", "", ""),
        Requirement("torch", "2.10", "engine"),
        Requirement("gguf", "0.17", "local"),
    ]


def test_installed_packages_are_fine() -> None:
    finding = check_packages(
        "", [Requirement("torch", "2.9", ""), Requirement("x", "", "")], {"torch": "2.13.0+cpu", "x": "1"}
    )
    assert finding.state is State.OK
    assert "torch 2.13.0+cpu" in finding.detail


def test_a_missing_package_of_the_base_is_wrong() -> None:
    finding = check_packages("", [Requirement("grpcio", "1.76", "")], {})
    assert finding.state is State.WRONG
    assert "grpcio is missing" in finding.detail
    assert finding.remedy == 'pip install --upgrade "octavo-serve"'


def test_a_missing_extra_is_a_note() -> None:
    finding = check_packages("engine", [Requirement("torch", "2.10", "engine")], {})
    assert finding.state is State.NOTE
    assert '"octavo-serve[engine]"' in finding.remedy


@pytest.mark.parametrize(("version", "state"), [("2.9.1", State.WRONG), ("2.10", State.OK), ("2.10.0rc1", State.OK)])
def test_versions_are_compared_as_numbers(version: str, state: State) -> None:
    assert check_packages("engine", [Requirement("torch", "2.10", "engine")], {"torch": version}).state is state


@pytest.mark.parametrize(
    ("status", "output", "errors", "state", "detail"),
    [
        (0, '{"version": "2.13.0", "devices": [], "threads": 2}', "", State.OK, "2.13.0, no GPU, 2 CPU threads"),
        (0, '{"version": "2.11", "devices": ["H200"], "threads": 2}', "", State.OK, "2.11, H200"),
        (1, "", "ModuleNotFoundError: No module named 'torch'", State.NOTE, "No module named"),
        (1, "", "Traceback\nOSError: libcudart.so.13 not found", State.WRONG, "libcudart"),
        (-9, "", "", State.WRONG, "no message"),
    ],
)
def test_torch_is_judged_by_its_probe(status: int, output: str, errors: str, state: State, detail: str) -> None:
    finding = torch_finding(status, output, errors)
    assert finding.state is state
    assert detail in finding.detail


def test_too_little_disk_is_wrong() -> None:
    assert check_disk(3 << 30, Path("/x")).state is State.OK
    finding = check_disk(1 << 30, Path("/x"))
    assert finding.state is State.WRONG
    assert "OCTAVO_CACHE" in finding.remedy


@pytest.mark.parametrize(("kilobytes", "state"), [(9_000_000, State.OK), (900_000, State.NOTE)])
def test_memory_is_read_from_meminfo(kilobytes: int, state: State) -> None:
    assert check_memory(f"MemTotal: 24000000 kB\nMemAvailable:  {kilobytes} kB\n").state is state


def test_an_unprepared_model_names_the_command(cache: Path) -> None:
    del cache
    finding = check_model()
    assert finding.state is State.NOTE
    assert "octavo model prepare" in finding.remedy


def test_a_taken_port_is_noted() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert check_port(port).state is State.NOTE
    assert check_port(port).state is State.OK


def test_python_and_the_embedded_redis_are_fine_here() -> None:
    assert check_python().state is State.OK
    assert sys.executable in check_python().detail
    assert check_embedded_redis().state is State.OK


def test_a_silent_redis_is_wrong_and_its_password_is_not_told() -> None:
    finding = check_redis("redis://:hunter2@127.0.0.1:1/0")
    assert finding.state is State.WRONG
    assert "hunter2" not in finding.detail + finding.remedy


def test_a_silent_router_is_wrong() -> None:
    finding = check_router("127.0.0.1:1")
    assert finding.state is State.WRONG
    assert "octavo up" in finding.remedy


def test_every_finding_that_is_not_fine_says_how_to_mend_it(cache: Path) -> None:
    del cache
    # The probe of torch takes seconds, and is judged above.
    findings = [check() for check in examine(router=None, redis_url=None, port=0) if check is not check_torch]
    assert len(findings) >= 8
    assert all(finding.remedy for finding in findings if finding.state is not State.OK)
