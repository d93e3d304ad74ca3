"""Turns every error that leaves a handler into a status with details, and never lets an exception's text out."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from octavo.attributes import Log
from octavo.errors import InternalError, InvalidRequest, OctavoError

from octavo_router.call import Context, request_id_of

_log = structlog.get_logger("octavo.router.rpc")
_PREFIX = "/octavo.v1."
_Handler = Callable[[Any, Context], Awaitable[Any]]
if TYPE_CHECKING:  # generic in the stubs only
    _MethodHandler = grpc.RpcMethodHandler[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps Octavo's own methods, which are coroutines; health and reflection look after themselves."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MethodHandler | None:
        """Return the method's handler with its errors translated."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(_PREFIX):
            return handler
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(_guarded(handler.unary_stream, method), **codecs)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(_guarded(handler.unary_unary, method), **codecs)
        return handler


def _guarded(handler: Any, method: str) -> Any:
    async def guarded(request: Any, context: Context) -> Any:
        try:
            return await handler(request, context)
        except OctavoError as error:
            await _abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001  the outermost frame of a call: no exception leaves it as text
            request_id = _request_id(context)
            # Where it happened, but not the exception's text, which may quote a prompt.
            frames = "".join(traceback.format_tb(error.__traceback__))
            kind = type(error).__name__
            _log.error("rpc_failed", method=method, error=kind, frames=frames, **{Log.REQUEST_ID: request_id})
            await _abort(context, InternalError("internal", f"internal error; request id {request_id}"))

    return guarded


async def _abort(context: Context, error: OctavoError) -> None:
    await context.abort(error.code, error.message, trailing_metadata=error.trailing_metadata())


def _request_id(context: Context) -> str:
    try:
        return request_id_of(context)
    except InvalidRequest:
        return ""
