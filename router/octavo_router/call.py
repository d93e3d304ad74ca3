"""What a gRPC call brings besides its message: request id, tenant, trace context and deadline."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
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
    said = _metadata_texts(context, {Metadata.TENANT, Metadata.REQUEST_ID, Metadata.TRACEPARENT})
    tenant, request_id = said.get(Metadata.TENANT), said.get(Metadata.REQUEST_ID)
    remaining_s = context.time_remaining()
    timeout_s = min(default_timeout_s if remaining_s is None else remaining_s, max_timeout_s)
    return Call(
        request_id=check_name(request_id, Metadata.REQUEST_ID) if request_id else f"req-{secrets.token_hex(12)}",
        tenant=check_name(tenant, Metadata.TENANT) if tenant else "",
        traceparent=said.get(Metadata.TRACEPARENT, ""),
        deadline=time.monotonic() + timeout_s,
    )


def _metadata_texts(context: Context, keys: Collection[str]) -> dict[str, str]:
    """Return the first value of each of these metadata keys that the call has."""
    said: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if name in keys and name not in said:
            said[name] = value if isinstance(value, str) else value.decode("ascii", "replace")
    return said
