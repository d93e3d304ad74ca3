"""What can go wrong with a request, as one tree, and the gRPC status that each error becomes.

    OctavoError
    ├── InvalidRequest        INVALID_ARGUMENT     the request can never work as it is
    ├── NotFound              NOT_FOUND            no such model
    ├── Overloaded            RESOURCE_EXHAUSTED   try again later (RetryInfo)
    ├── Unavailable           UNAVAILABLE          no engine can take it now (RetryInfo)
    ├── DeadlineExceeded      DEADLINE_EXCEEDED    its time ran out
    ├── Cancelled             CANCELLED            given up by the client
    ├── Unsupported           UNIMPLEMENTED        a method that this kind of process does not have
    └── InternalError         INTERNAL             a bug in Octavo or a failed engine; no detail leaves the process

`reason` is stable and machine-readable (google.rpc.ErrorInfo, domain "octavo"). Messages give the value, the limit and
the remedy; they never carry an exception's text.
"""

from __future__ import annotations

from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from octavo.attributes import ERROR_DOMAIN

STATUS_METADATA_KEY = "grpc-status-details-bin"


class OctavoError(Exception):
    """Base of every error that a client may see."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.metadata = metadata or {}

    def status(self) -> status_pb2.Status:
        """Return the google.rpc.Status with its details."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=ERROR_DOMAIN, metadata=self.metadata)
        status = status_pb2.Status(code=self.code.value[0], message=self.message, details=[_pack(info)])
        if self.field is not None:
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
            status.details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(self.retry_after_s * 1000))
            status.details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
        return status

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """Return the trailing metadata that carries `status()`."""
        return ((STATUS_METADATA_KEY, self.status().SerializeToString()),)


class InvalidRequest(OctavoError):
    """The request can never work as it is. `field` is the path of the offending field."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(OctavoError):
    """No such model."""

    code = grpc.StatusCode.NOT_FOUND


class Overloaded(OctavoError):
    """Beyond the limits of this process now."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(OctavoError):
    """No engine can take the request now."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(OctavoError):
    """The request's time ran out."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(OctavoError):
    """Given up by the client."""

    code = grpc.StatusCode.CANCELLED


class Unsupported(OctavoError):
    """This kind of process does not have the method."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(OctavoError):
    """A bug in Octavo, or an engine that failed. Never carries an exception's text."""

    code = grpc.StatusCode.INTERNAL


_BY_CODE: dict[int, type[OctavoError]] = {
    kind.code.value[0]: kind
    for kind in (
        InvalidRequest,
        NotFound,
        Overloaded,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Unsupported,
        InternalError,
    )
}


def from_code(code: int, reason: str, message: str, retry_after_s: float | None = None) -> OctavoError:
    """Return the error for a google.rpc.Code received from a peer; an unknown code becomes InternalError."""
    return _BY_CODE.get(code, InternalError)(reason, message, retry_after_s=retry_after_s)


def from_rpc_error(error: grpc.aio.AioRpcError) -> OctavoError:
    """Return the error that a peer's status stands for, with the details that Octavo's servers send.

    A status without details comes from the transport or from a foreign server: its reason is the code's name in small
    letters ("unavailable").
    """
    code = error.code()
    kind = _BY_CODE.get(code.value[0], InternalError)
    message = error.details() or code.name
    status = status_pb2.Status()
    info = error_details_pb2.ErrorInfo(reason=code.name.lower())
    violation: str | None = None
    retry = error_details_pb2.RetryInfo()
    try:
        for key, value in error.trailing_metadata() or ():
            if key == STATUS_METADATA_KEY and isinstance(value, bytes):
                status.ParseFromString(value)
        for detail in status.details:
            if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad_request = error_details_pb2.BadRequest.FromString(detail.value)
                violation = next((entry.field for entry in bad_request.field_violations), None)
            detail.Unpack(info)
            detail.Unpack(retry)
    except DecodeError:
        return kind(code.name.lower(), message)
    return kind(
        info.reason,
        message,
        field=violation,
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        metadata=dict(info.metadata),
    )


def _pack(
    detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
