"""The outermost frame of every RPC: errors become statuses with details, and nothing else leaves the process."""

from __future__ import annotations

import inspect
import traceback
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from octavo.attributes import Log, Metadata
from octavo.errors import InternalError, InvalidRequest, OctavoError

_log = structlog.get_logger()

if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call that raised with the status of its OctavoError, and with a bare INTERNAL for anything else."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler, guarded."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        call = _Call(handler_call_details, handler.request_deserializer)
        if handler.response_streaming:
            behavior = handler.stream_stream or handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(_guard_stream(behavior, call), response_serializer=handler.response_serializer)
        if handler.request_streaming:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _guard_unary(handler.unary_unary, call), response_serializer=handler.response_serializer
        )


@dataclass(frozen=True, slots=True)
class _Call:
    """A call, before its request is parsed: what cannot be parsed is the caller's fault and must not become UNKNOWN."""

    details: grpc.HandlerCallDetails
    deserialize: Callable[[bytes], Any] | None

    def parsed(self, request: Any) -> Any:
        """Return the message, or the stream of messages, that the raw request stands for."""
        return self._parse(request) if isinstance(request, bytes) else self._parse_stream(request)

    async def _parse_stream(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[Any]:
        async for request in requests:
            yield self._parse(request)

    def _parse(self, request: bytes) -> Any:
        try:
            return self.deserialize(request) if self.deserialize else request
        except DecodeError:
            raise InvalidRequest("malformed_message", "the request is not a valid protobuf message") from None


def _guard_unary(behavior: Any, call: _Call) -> Any:
    async def guarded(request: bytes, context: Context) -> Any:
        try:
            return await behavior(call.parsed(request), context)
        except (OctavoError, grpc.aio.AbortError) as error:
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call
            await _abort(context, _internal(error, call))

    return guarded


def _guard_stream(behavior: Any, call: _Call) -> Any:
    async def guarded(request: Any, context: Context) -> None:
        try:
            if inspect.isasyncgenfunction(behavior):
                responses: AsyncGenerator[Any] = behavior(call.parsed(request), context)
                async with aclosing(responses):
                    async for response in responses:
                        await context.write(response)
            else:
                await behavior(call.parsed(request), context)
        except (OctavoError, grpc.aio.AbortError) as error:
            await _abort(context, error)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call
            await _abort(context, _internal(error, call))

    return guarded


async def _abort(context: Context, error: OctavoError | grpc.aio.AbortError) -> None:
    if not isinstance(error, OctavoError):
        raise error
    await context.abort(error.code, error.message, trailing_metadata=error.trailing_metadata())


def _internal(error: Exception, call: _Call) -> InternalError:
    # Where it happened, but not the exception's text, which may quote a prompt.
    frames = "".join(traceback.format_tb(error.__traceback__))
    kind, request_id = type(error).__name__, _request_id(call.details)
    _log.error("call_failed", method=call.details.method, error=kind, frames=frames, **{Log.REQUEST_ID: request_id})
    return InternalError(
        "internal",
        f"internal error; the server's log has it under request id {request_id}",
        metadata={"request_id": request_id},
    )


def _request_id(details: grpc.HandlerCallDetails) -> str:
    for key, value in details.invocation_metadata or ():
        if key == Metadata.REQUEST_ID and isinstance(value, str) and 0 < len(value) <= 128 and value.isprintable():
            return value
    return uuid.uuid4().hex
