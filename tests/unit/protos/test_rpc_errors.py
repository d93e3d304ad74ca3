from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import AsyncMock

import grpc
import pytest
from octavo.rpc_errors import ErrorInterceptor
from structlog.testing import capture_logs


async def test_an_unexpected_error_leaves_no_text_but_the_request_id() -> None:
    async def broken(_request: bytes, _context: object) -> bytes:
        raise ValueError("secret")

    async def find(_details: object) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(broken, request_deserializer=bytes)

    details = SimpleNamespace(method="/m", invocation_metadata=(("x-request-id", "r-7"),))
    handler = await ErrorInterceptor().intercept_service(find, details)
    context = SimpleNamespace(abort=AsyncMock(side_effect=grpc.aio.AbortError))
    with capture_logs() as lines, pytest.raises(grpc.aio.AbortError):
        await handler.unary_unary(b"", context)

    code, text = context.abort.call_args.args
    assert code == grpc.StatusCode.INTERNAL
    assert "secret" not in text
    assert "r-7" in text
    assert [(line["event"], line["error"], line["request_id"]) for line in lines] == [
        ("call_failed", "ValueError", "r-7")
    ]
    assert "test_rpc_errors" in lines[0]["frames"]
    assert all("secret" not in str(value) for key, value in lines[0].items() if key != "frames")
