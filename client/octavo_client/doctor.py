"""What `octavo doctor` looks at: each check gives one finding, and says how to mend what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import grpc
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from octavo.model_directory import DEFAULT_MODEL, cache_directory, default_model_directory

from octavo_client.default_model import is_prepared
from octavo_client.redis_server import RedisMissing, server_binary
from octavo_client.routers import read_targets

DISTRIBUTION: Final = "octavo-serve"
_MIN_PYTHON: Final = (3, 11)
_MIN_DISK_BYTES: Final = 2 << 30
_MIN_MEMORY_BYTES: Final = 2 << 30
_EXTRAS: Final = ("router", "engine", "local")
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(?:>=(?P<least>[0-9.]+))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"](\w+)['\"]")
_TORCH_PROBE: Final = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"version": torch.__version__, "devices": names, "threads": torch.get_num_threads()}))
"""


class State(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"  # works, but something is missing that some use needs
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    what: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of the package's own requirements."""

    name: str
    least: str
    """Lowest version, empty if any."""
    extra: str
    """Extra that it belongs to, empty if always needed."""


def examine(*, router: str | None, redis_url: str | None, port: int) -> Iterable[Callable[[], Finding]]:
    """Return the checks, in order.

    Args:
        router: the router that must answer, or several with commas between them; None if none has to.
        redis_url: the Redis server that must answer; None for the embedded one.
        port: where `octavo up` would put its router.
    """
    yield check_python
    yield from _package_checks()
    yield check_torch
    yield check_model
    yield lambda: check_disk(shutil.disk_usage(_existing(cache_directory())).free, cache_directory())
    yield lambda: check_memory(Path("/proc/meminfo").read_text(encoding="ascii"))
    yield lambda: check_redis(redis_url) if redis_url else check_embedded_redis()
    if router:
        for target in read_targets(router):
            yield lambda target=target: check_router(target)  # type: ignore[misc]  # bound now
    else:
        yield lambda: check_port(port)


def check_python() -> Finding:
    """Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= _MIN_PYTHON:
        return Finding(what="Python", state=State.OK, detail=f"{version} at {sys.executable}")
    return Finding(what="Python", state=State.WRONG, detail=version, remedy="install Python 3.11 or newer")


def requirements(lines: Iterable[str]) -> list[Requirement]:
    """Parse requirements as a package's metadata gives them; what no machine here needs (dev) is left out."""
    found: list[Requirement] = []
    for line in lines:
        needed, _, marker = line.partition(";")
        match = _REQUIREMENT.match(needed.strip())
        extra_match = _EXTRA.search(marker)
        extra = extra_match[1] if extra_match else ""
        if match and match["name"] != DISTRIBUTION and (not extra or extra in _EXTRAS):
            found.append(Requirement(match["name"], match["least"] or "", extra))
    return found


def check_packages(extra: str, needed: Iterable[Requirement], installed: Mapping[str, str]) -> Finding:
    """Every package of one extra is there and new enough.

    Args:
        extra: "" for what is always needed.
        needed: requirements of that extra.
        installed: version by name.
    """
    what = f"packages [{extra}]" if extra else "packages"
    missing = [need.name for need in needed if need.name not in installed]
    old = [
        f"{need.name} {installed[need.name]} < {need.least}"
        for need in needed
        if need.name in installed and need.least and _numbers(installed[need.name]) < _numbers(need.least)
    ]
    if not missing and not old:
        return Finding(what=what, state=State.OK, detail=" ".join(f"{n.name} {installed[n.name]}" for n in needed))
    detail = ", ".join([*(f"{name} is missing" for name in missing), *(f"{line} is needed" for line in old)])
    target = f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION
    state = State.NOTE if extra and not old else State.WRONG
    return Finding(what=what, state=state, detail=detail, remedy=f'pip install --upgrade "{target}"')


def check_torch() -> Finding:
    """Torch works, and on what; asked in a process of its own, because importing it here takes seconds."""
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(what="torch", state=State.WRONG, detail="does not import within 120 s", remedy="reinstall torch")
    return torch_finding(probe.returncode, probe.stdout, probe.stderr)


def torch_finding(status: int, output: str, errors: str) -> Finding:
    """Judge the probe's exit status, standard output and standard error."""
    remedy = 'pip install "octavo-serve[engine]" (a router alone does not need it)'
    if status != 0:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        state = State.NOTE if "No module named" in last else State.WRONG
        return Finding(what="torch", state=state, detail=last, remedy=remedy)
    facts: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    devices = ", ".join(facts["devices"]) or f"no GPU, {facts['threads']} CPU threads"
    return Finding(what="torch", state=State.OK, detail=f"{facts['version']}, {devices}")


def check_model() -> Finding:
    """The default model is prepared."""
    if is_prepared():
        return Finding(what="default model", state=State.OK, detail=str(default_model_directory()))
    remedy = "octavo model prepare (octavo up and octavo demo do it by themselves)"
    return Finding(what="default model", state=State.NOTE, detail=f"{DEFAULT_MODEL} is not prepared", remedy=remedy)


def check_disk(free_bytes: int, place: Path) -> Finding:
    """There is room for the default model and logs."""
    detail = f"{free_bytes / 2**30:.1f} GiB free for {place}"
    if free_bytes >= _MIN_DISK_BYTES:
        return Finding(what="disk", state=State.OK, detail=detail)
    remedy = f"free {_MIN_DISK_BYTES >> 30} GiB, or set OCTAVO_CACHE to another place"
    return Finding(what="disk", state=State.WRONG, detail=detail, remedy=remedy)


def check_memory(meminfo: str) -> Finding:
    """There is memory for two engines of the default model, told by the text of /proc/meminfo."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    available = int(match[1]) * 1024 if match else 0
    detail = f"{available / 2**30:.1f} GiB available"
    if available >= _MIN_MEMORY_BYTES:
        return Finding(what="memory", state=State.OK, detail=detail)
    return Finding(what="memory", state=State.NOTE, detail=detail, remedy="start fewer engines: octavo up --engines 1")


def check_embedded_redis() -> Finding:
    """The embedded Redis server is there and runs."""
    try:
        version = subprocess.run(
            [str(server_binary()), "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except RedisMissing as error:
        return Finding(what="embedded Redis", state=State.NOTE, detail=str(error), remedy="as it says")
    except (OSError, subprocess.SubprocessError) as error:
        detail = f"does not run: {type(error).__name__}"
        return Finding(what="embedded Redis", state=State.WRONG, detail=detail, remedy="use octavo up --redis-url URL")
    return Finding(what="embedded Redis", state=State.OK, detail=version)


def check_redis(url: str) -> Finding:
    """A Redis server answers."""
    remedy = "check the URL and the server; serving goes on without Redis, but engines must then be named to the router"
    try:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as server:
            info: dict[str, Any] = server.info("server")
    except (redis.RedisError, ValueError) as error:
        # Only the kind: the text of an error, like the URL, may hold a password.
        return Finding(what="Redis", state=State.WRONG, detail=f"no answer: {type(error).__name__}", remedy=remedy)
    return Finding(what="Redis", state=State.OK, detail=f"answers, version {info.get('redis_version', '?')}")


def check_port(port: int) -> Finding:
    """The router's usual port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            detail = f"{port} is taken"
            remedy = "octavo up takes the next free one; or check what runs there with octavo doctor --router"
            return Finding(what="port", state=State.NOTE, detail=detail, remedy=remedy)
    return Finding(what="port", state=State.OK, detail=f"{port} is free")


def check_router(address: str) -> Finding:
    """A router answers and can serve."""
    return asyncio.run(_ask_router(address))


async def _ask_router(address: str) -> Finding:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service="octavo.v1.InferenceService"), timeout=3)
        except grpc.aio.AioRpcError as error:
            detail = f"{address}: {error.code().name}"
            return Finding(what="router", state=State.WRONG, detail=detail, remedy="start one: octavo up")
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return Finding(what="router", state=State.OK, detail=f"{address} serves")
    remedy = "it drains, or has no engine: see octavo engines and the logs"
    return Finding(what="router", state=State.WRONG, detail=f"{address}: {name}", remedy=remedy)


def _package_checks() -> Iterable[Callable[[], Finding]]:
    needed = requirements(metadata.requires(DISTRIBUTION) or [])
    installed = {need.name: version for need in needed if (version := _version(need.name))}
    seen: set[str] = set()
    for extra in ("", *_EXTRAS):
        own = [need for need in needed if need.extra == extra and need.name not in seen]
        seen |= {need.name for need in own}
        if own:
            yield lambda extra=extra, own=own: check_packages(extra, own, installed)  # type: ignore[misc]  # bound now


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "2.13.0+cpu" is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _existing(path: Path) -> Path:
    """Return the path or its nearest ancestor that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path if os.access(path, os.R_OK) else Path("/")
