"""The least that a streaming server in Python can do: constant bytes to every stream at each tick. What gRPC itself costs.

    python bare_server.py --steps-per-s 20

Says {"address": ...} and serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import grpc
from octavo.process import StopRequest, run
from octavo.v1 import inference_pb2

_MESSAGE = inference_pb2.GenerateResponse(
    chunk=inference_pb2.OutputChunk(text=" hello", position=100, num_tokens=1)
).SerializeToString()


class _Bare(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self.tick = asyncio.Event()

    def service(self, handler_call_details: Any) -> Any:
        del handler_call_details
        return grpc.unary_stream_rpc_method_handler(self._stream)  # bytes in, bytes out

    async def _stream(self, _request: bytes, context: Any) -> None:
        while True:
            await self.tick.wait()
            await context.write(_MESSAGE)


async def _tick(bare: _Bare, step_s: float) -> None:
    while True:
        await asyncio.sleep(step_s)
        tick, bare.tick = bare.tick, asyncio.Event()
        tick.set()


async def _serve(steps_per_s: float) -> None:
    bare = _Bare()
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((bare,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    stop = StopRequest()
    stop.watch_stdin(hurry=True)
    ticking = asyncio.create_task(_tick(bare, 1 / steps_per_s))
    print(json.dumps({"address": address}), flush=True)
    await stop.asked.wait()
    ticking.cancel()
    await server.stop(None)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps-per-s", type=float, required=True)
    run(_serve(parser.parse_args().steps_per_s))


if __name__ == "__main__":
    main()
