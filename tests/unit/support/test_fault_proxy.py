from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.fault_proxy import DOWN, UP, FaultProxy

PATIENCE_S = 10.0
A_WHILE_S = 0.1  # in which what does not come would have come


class Echo:
    """A server that sends everything back, and keeps it."""

    def __init__(self) -> None:
        self.received = b""
        self.num_connections = 0
        self.got = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while piece := await reader.read(1 << 16):
                async with self.got:
                    self.received += piece
                    self.got.notify_all()
                writer.write(piece)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def has(self, received: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S), self.got:
            await self.got.wait_for(lambda: self.received == received)


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    async def hears(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            assert await self._reader.readexactly(len(data)) == data

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(A_WHILE_S):
                await self._reader.read(1)

    async def is_reset(self) -> None:
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                assert await self._reader.read(1) == b"?", "neither data nor an orderly end"

    def end(self) -> None:
        self._writer.write_eof()

    async def hears_the_end(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            assert await self._reader.read() == b""

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with FaultProxy(f"{host}:{port}") as proxy:
        yield proxy
    server.close()
    await server.wait_closed()


@pytest.fixture
async def new_client(proxy: FaultProxy) -> AsyncIterator[object]:
    clients = []

    async def connect() -> Client:
        host, _, port = proxy.address.rpartition(":")
        clients.append(Client(*await asyncio.open_connection(host, int(port))))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


async def test_whole_network_forwards_both_ways_up_to_the_end(new_client):
    client = await new_client()
    client.say(b"hello")
    await client.hears(b"hello")
    client.end()
    await client.hears_the_end()


async def test_long_messages_come_whole(new_client):
    client = await new_client()
    client.say(bytes(range(256)) * 8192)
    await client.hears(bytes(range(256)) * 8192)


async def test_cut_resets_connections_and_refuses_new_ones_until_healed(new_client, proxy):
    client = await new_client()
    client.say(b"hello")
    await client.hears(b"hello")
    proxy.cut()
    await client.is_reset()
    late = await new_client()
    await late.hears_the_end()
    proxy.heal()
    again = await new_client()
    again.say(b"back")
    await again.hears(b"back")


async def test_half_open_network_keeps_connections_and_loses_nothing(new_client, proxy, echo):
    client = await new_client()
    client.say(b"hello")
    await client.hears(b"hello")
    proxy.half_open()
    client.say(b" world")
    await client.hears_nothing()
    assert echo.received == b"hello"
    proxy.heal()
    await client.hears(b" world")


async def test_half_open_network_accepts_what_the_server_does_not_hear_of(new_client, proxy, echo):
    proxy.half_open()
    client = await new_client()
    client.say(b"hello")
    await client.hears_nothing()
    assert echo.num_connections == 0
    proxy.heal()
    await client.hears(b"hello")


async def test_one_direction_may_be_half_open_alone(new_client, proxy, echo):
    client = await new_client()
    client.say(b"hello")
    await client.hears(b"hello")
    proxy.half_open(DOWN)
    client.say(b" world")
    await echo.has(b"hello world")
    await client.hears_nothing()
    proxy.heal()
    await client.hears(b" world")


async def test_delay_holds_each_piece_back_but_keeps_their_order(new_client, proxy):
    client = await new_client()
    client.say(b"hello")
    await client.hears(b"hello")
    now = asyncio.get_running_loop().time
    proxy.delay(0.15, UP)
    said_at = now()
    for piece in (b"a", b"b", b"c"):
        client.say(piece)
        await asyncio.sleep(0)
    await client.hears(b"abc")
    assert now() - said_at >= 0.15, "late"
    proxy.delay(0.0, UP)
    client.say(b"d")
    await client.hears(b"d")


async def test_delays_of_pieces_do_not_add_up(new_client, proxy):
    client = await new_client()
    proxy.delay(0.2)
    now = asyncio.get_running_loop().time
    began = now()
    for number in range(20):
        client.say(bytes([number]))
        await asyncio.sleep(0.01)
    await client.hears(bytes(range(20)))
    assert now() - began < 20 * 0.2


async def test_new_connections_go_where_the_server_has_moved(new_client, proxy):
    moved = Echo()
    server = await asyncio.start_server(moved.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    old = await new_client()
    old.say(b"old")
    await old.hears(b"old")
    proxy.upstream = f"{host}:{port}"
    new = await new_client()
    new.say(b"new")
    await new.hears(b"new")
    assert moved.received == b"new"
    new.close()
    server.close()


async def test_server_that_is_gone_ends_its_connections(new_client, proxy):
    proxy.upstream = "127.0.0.1:1"
    client = await new_client()
    await client.hears_the_end()
    proxy.upstream = None
    client = await new_client()
    await client.hears_the_end()


async def test_closed_connections_are_let_go(new_client, proxy):
    client = await new_client()
    client.say(b"hello")
    await client.hears(b"hello")
    assert proxy.num_connections == 1
    client.end()
    await client.hears_the_end()
    async with asyncio.timeout(PATIENCE_S):
        while proxy.num_connections:  # noqa: ASYNC110 - nobody else needs to be told
            await asyncio.sleep(0)
