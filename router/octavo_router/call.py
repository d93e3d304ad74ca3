"""What a gRPC call brings besides its message: request id, tenant, trace context and deadline."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from octavo.attributes import Metadata

from octavo_router.validation import check_name

if TYPE_CHECKING:  # generic in the stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """`deadline` is in monotonic seconds."""

    request_id: str
    tenant: str
    traceparent: str
    deadline: float

    @property
    def cache_salt(self) -> bytes:
        """Pages are shared only within a tenant; calls that name none share among themselves."""
        return self.tenant.encode()


def read_call(context: Context, *, default_timeout_s: float, max_timeout_s: float) -> Call:
    """Return what the call's metadata and deadline say.

    Raises:
        InvalidRequest: the request id or the tenant is not fit for logs.
    """
    tenant = metadata_text(context, Metadata.TENANT)
    remaining_s = context.time_remaining()
    timeout_s = min(default_timeout_s if remaining_s is None else remaining_s, max_timeout_s)
    return Call(
        request_id=request_id_of(context),
        tenant=check_name(tenant, Metadata.TENANT) if tenant else "",
        traceparent=metadata_text(context, Metadata.TRACEPARENT),
        deadline=time.monotonic() + timeout_s,
    )


def request_id_of(context: Context) -> str:
    """Return the client's request id, or a new one.

    Raises:
        InvalidRequest: the client's is not fit for logs.
    """
    given = metadata_text(context, Metadata.REQUEST_ID)
    return check_name(given, Metadata.REQUEST_ID) if given else f"req-{secrets.token_hex(12)}"


def metadata_text(context: Context, key: str) -> str:
    """Return the first value of a metadata key, or an empty string."""
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return ""
