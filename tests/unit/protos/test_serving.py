from __future__ import annotations

import socket
import urllib.request

import grpc
import pytest
from octavo.serving import ListenError, MetricsPage, bind
from octavo.settings import split_address
from prometheus_client import CollectorRegistry, Counter


def test_the_metrics_page_shows_its_registry_and_no_other() -> None:
    registry = CollectorRegistry()
    Counter("lamps", "Lamps.", registry=registry).inc(3)
    page = MetricsPage(registry, "127.0.0.1:0")
    try:
        with urllib.request.urlopen(f"http://{page.address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        page.close()

    assert "lamps_total 3.0" in text
    assert "python_info" not in text


async def test_an_address_in_use_is_refused_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError) as page_refused:
            MetricsPage(CollectorRegistry(), address)
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        with pytest.raises(ListenError) as server_refused:
            bind(server, address, "admin_listen")
        await server.stop(None)

    assert page_refused.value.problems[0].startswith(f"metrics_listen: cannot listen at {address}")
    assert server_refused.value.problems[0].startswith(f"admin_listen: cannot listen at {address}")


async def test_port_0_becomes_the_port_that_was_bound() -> None:
    server = grpc.aio.server()
    host, port = split_address(bind(server, "127.0.0.1:0", "listen"))
    await server.stop(None)

    assert host == "127.0.0.1"
    assert port > 0
