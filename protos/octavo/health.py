"""Asks a process whether it serves, for container health checks: `python -m octavo.health ADDRESS [SERVICE]`.

Exit status 0 if the grpc.health.v1 service at the address says SERVING, 1 otherwise. Without a service name the
question is whether the process lives; with one, whether it takes requests.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_S = 3.0


def is_serving(address: str, service: str = "") -> bool:
    """Tell whether the process at "host:port" reports SERVING for a service."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=_TIMEOUT_S
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    """Run the check."""
    if len(sys.argv) not in {2, 3}:
        sys.exit("usage: python -m octavo.health ADDRESS [SERVICE]")
    sys.exit(0 if is_serving(*sys.argv[1:]) else 1)


if __name__ == "__main__":
    main()
